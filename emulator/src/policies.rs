//! Shared access policies: the hub's own keys, and what each may do.

use std::path::Path;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::error::EmulatorError;
use crate::files;
use crate::keys::{Key, KeySlot, Purpose};

/// What a policy may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    RegistryRead,
    RegistryWrite,
    ServiceConnect,
    DeviceConnect,
}

/// The policies that every hub is created with (IoT Hub documentation, "Control access", access policies).
const BUILT_IN: [(&str, &[Right]); 5] = [
    (
        "iothubowner",
        &[Right::RegistryRead, Right::RegistryWrite, Right::ServiceConnect, Right::DeviceConnect],
    ),
    ("service", &[Right::ServiceConnect]),
    ("device", &[Right::DeviceConnect]),
    ("registryRead", &[Right::RegistryRead]),
    ("registryReadWrite", &[Right::RegistryRead, Right::RegistryWrite]),
];

#[derive(Debug)]
pub(crate) struct Policy {
    name: &'static str,
    rights: &'static [Right],
    primary: Key,
    secondary: Key,
}

impl Policy {
    pub(crate) fn allows(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }

    pub(crate) fn key(&self, slot: KeySlot) -> &Key {
        match slot {
            KeySlot::Primary => &self.primary,
            KeySlot::Secondary => &self.secondary,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Policies(Vec<Policy>);

/// One policy's keys in `policies.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptKeys {
    primary_key: String,
    secondary_key: String,
}

impl Policies {
    /// Reads the keys kept in `dir`, or makes and keeps new ones.
    pub(crate) fn load_or_create(dir: &Path) -> Result<Self, EmulatorError> {
        let path = dir.join("policies.json");
        let damaged =
            |problem: &str| EmulatorError::Damaged { path: path.clone(), problem: problem.to_owned() };
        let text = files::read_kept(&path)?;
        let is_kept = text.is_some();
        let mut kept: BTreeMap<String, KeptKeys> = match text {
            Some(text) => {
                serde_json::from_str(&text).map_err(|_| damaged("no JSON map of policies' keys"))?
            }
            None => BTreeMap::new(),
        };
        let is_whole = BUILT_IN.iter().all(|(name, _)| kept.contains_key(*name));
        if is_kept && !is_whole {
            return Err(damaged("a policy's keys are missing"));
        }
        let mut policies = Vec::with_capacity(BUILT_IN.len());
        for (name, rights) in BUILT_IN {
            let (primary, secondary) = match kept.get(name) {
                Some(keys) => {
                    let decode =
                        |text| Key::decode_for_registry(text).ok_or_else(|| damaged("a key is no base64"));
                    (decode(&keys.primary_key)?, decode(&keys.secondary_key)?)
                }
                None => (Key::generate(Purpose::HubPolicy)?, Key::generate(Purpose::HubPolicy)?),
            };
            policies.push(Policy { name, rights, primary, secondary });
        }
        if !is_kept {
            kept = policies
                .iter()
                .map(|policy| {
                    let keys = KeptKeys {
                        primary_key: policy.primary.encode(),
                        secondary_key: policy.secondary.encode(),
                    };
                    (policy.name.to_owned(), keys)
                })
                .collect();
            let text =
                serde_json::to_string_pretty(&kept).map_err(|_| damaged("can't be written as JSON"))?;
            files::write_private(&path, &text)?;
        }
        Ok(Self(policies))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Policy> {
        self.0.iter().find(|policy| policy.name == name)
    }
}
