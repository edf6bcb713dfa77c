//! The JSON output of an earlier run, as far as it is compared.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use twinkey_contract::Identity;
use twinkey_contract::report::{Report, SlotReport};

use super::document::DOCUMENT;
use crate::failure::Failure;

/// Longest file that is read, in bytes; 100,000 devices take about 100 MB.
const LEN_MAX: u64 = 1024 * 1024 * 1024;

/// What an earlier run saw.
pub(crate) struct Earlier {
    identities: HashMap<String, EarlierIdentity>,
}

/// One identity then.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EarlierIdentity {
    device_id: String,
    module_id: Option<String>,
    pub(crate) sequence: Option<u64>,
    primary: EarlierSlot,
    secondary: EarlierSlot,
}

#[derive(Debug, Default, Deserialize)]
struct EarlierSlot {
    fingerprint: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    document: String,
    identities: Vec<EarlierIdentity>,
}

impl Earlier {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let fail = |what: String| {
            Failure::usage(format!("--since {}: {what}", path.display()))
                .next("give the output of an earlier `twinkey fleet status --output json`")
        };
        let file = File::open(path).map_err(|e| fail(e.to_string()))?;
        let document: Document = serde_json::from_reader(BufReader::new(file.take(LEN_MAX)))
            .map_err(|e| fail(format!("line {}, column {}: {e}", e.line(), e.column())))?;
        if document.document != DOCUMENT {
            return Err(fail(format!("its `document` is not {DOCUMENT}")));
        }
        let named = |identity: EarlierIdentity| {
            let EarlierIdentity { device_id, module_id, .. } = &identity;
            (name(device_id, module_id.as_deref()), identity)
        };
        Ok(Self { identities: document.identities.into_iter().map(named).collect() })
    }

    pub(crate) fn of(&self, identity: &Identity) -> Option<&EarlierIdentity> {
        self.identities.get(&name(&identity.device_id, identity.module_id.as_deref()))
    }
}

impl EarlierIdentity {
    /// Whether a slot holds another key now. A change of keys comes with a new sequence.
    pub(crate) fn has_other_keys(&self, report: &Report) -> bool {
        let now = |slot: &Option<SlotReport>| slot.as_ref().map(|slot| slot.fingerprint.to_string());
        now(&report.primary) != self.primary.fingerprint
            || now(&report.secondary) != self.secondary.fingerprint
    }

    #[cfg(test)]
    pub(crate) fn seen(report: &Report) -> Self {
        let slot = |slot: &Option<SlotReport>| EarlierSlot {
            fingerprint: slot.as_ref().map(|slot| slot.fingerprint.to_string()),
        };
        Self {
            sequence: Some(report.sequence),
            primary: slot(&report.primary),
            secondary: slot(&report.secondary),
            ..Self::default()
        }
    }
}

fn name(device_id: &str, module_id: Option<&str>) -> String {
    module_id.map_or_else(|| device_id.to_owned(), |module_id| format!("{device_id}/{module_id}"))
}
