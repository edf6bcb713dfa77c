//! The two places of a key in the registry.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place of a key in the hub's registry. What a key is to us (active, candidate, retired) is another matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum KeySlot {
    /// `primaryKey`.
    Primary,
    /// `secondaryKey`.
    Secondary,
}

impl KeySlot {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Primary, Self::Secondary];

    /// The name in JSON, in a sealing's info string and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }

    /// The one that this is not.
    pub const fn other(self) -> Self {
        match self {
            Self::Primary => Self::Secondary,
            Self::Secondary => Self::Primary,
        }
    }
}

impl fmt::Display for KeySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<twinkey_sas::KeySlot> for KeySlot {
    fn from(slot: twinkey_sas::KeySlot) -> Self {
        match slot {
            twinkey_sas::KeySlot::Primary => Self::Primary,
            twinkey_sas::KeySlot::Secondary => Self::Secondary,
        }
    }
}
