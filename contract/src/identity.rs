//! Who a key belongs to.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A device or one of its modules. `Display` is the MQTT ClientId: `device` or `device/module`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Case-sensitive.
    pub device_id: String,
    /// Case-sensitive.
    pub module_id: Option<String>,
}

impl Identity {
    /// Longest device or module id in characters (Microsoft, "Understand the identity registry").
    pub const ID_LEN_MAX: usize = 128;

    /// Checks the ids: up to 128 ASCII letters, digits and `- . _ % # * ? ! ( ) , : = @ $ ' +` (Microsoft,
    /// "Understand the identity registry").
    ///
    /// # Errors
    /// [`IdentityError`] names the id's kind and never quotes it.
    pub fn new(device_id: &str, module_id: Option<&str>) -> Result<Self, IdentityError> {
        let device_id = check("device", device_id)?;
        let module_id = module_id.map(|id| check("module", id)).transpose()?;
        Ok(Self { device_id, module_id })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module_id {
            Some(module_id) => write!(f, "{}/{module_id}", self.device_id),
            None => f.write_str(&self.device_id),
        }
    }
}

/// Reads the MQTT ClientId.
impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((device_id, module_id)) => Self::new(device_id, Some(module_id)),
            None => Self::new(text, None),
        }
    }
}

/// Why a text is no id. The first field says of what: `device` or `module`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Nothing there.
    #[error("the {0} id is empty")]
    Empty(&'static str),
    /// Too long.
    #[error("the {0} id has {1} bytes, but 128 characters are the most")]
    TooLong(&'static str, usize),
    /// Has a character that the registry doesn't take.
    #[error(
        "the {0} id has a character at byte {1} that the registry doesn't take: letters, digits and -._%#*?!(),:=@$'+ are good"
    )]
    Character(&'static str, usize),
}

fn check(kind: &'static str, id: &str) -> Result<String, IdentityError> {
    if id.is_empty() {
        return Err(IdentityError::Empty(kind));
    }
    if id.len() > Identity::ID_LEN_MAX {
        return Err(IdentityError::TooLong(kind, id.len()));
    }
    match id.find(|c: char| !c.is_ascii_alphanumeric() && !"-._%#*?!(),:=@$'+".contains(c)) {
        Some(at) => Err(IdentityError::Character(kind, at)),
        None => Ok(id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Identity, IdentityError};

    #[test]
    fn every_character_of_the_registry_is_taken_and_others_are_refused_by_place() {
        let odd = "aZ09-._%#*?!(),:=@$'+";
        let identity = Identity::new(odd, Some("$edgeHub")).unwrap();
        assert_eq!(identity.to_string(), format!("{odd}/$edgeHub"));
        assert_eq!(identity.to_string().parse(), Ok(identity));
        for bad in ["a/b", "a b", "a;b", "a\nb", "a\u{e4}b", "a&b", "a\"b"] {
            assert_eq!(Identity::new(bad, None), Err(IdentityError::Character("device", 1)), "{bad}");
        }
    }

    #[test]
    fn length_is_1_to_128() {
        assert_eq!(Identity::new("", None), Err(IdentityError::Empty("device")));
        assert_eq!(Identity::new("d", Some("")), Err(IdentityError::Empty("module")));
        assert!(Identity::new(&"d".repeat(128), None).is_ok());
        assert_eq!(Identity::new("d", Some(&"m".repeat(129))), Err(IdentityError::TooLong("module", 129)));
        assert_eq!("d/m/x".parse::<Identity>(), Err(IdentityError::Character("module", 1)));
    }
}
