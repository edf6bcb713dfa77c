//! Asking a device for a report that can't be an old one.
//!
//! Everybody who is connected as the device can put back a report that the agent once made, and its proof verifies. Where that
//! matters, the direct method `keyRenewal` is called with a nonce: only a holder of the key in use can answer it.

use serde_json::{Value, json};
use twinkey_contract::report::{Nonce, Report};
use twinkey_contract::{Identity, KeySlot, Mac};

use super::device::Stop;
use super::refusal::Refusal;
use crate::failure::Failure;
use crate::hub::{Hub, KeyPair};

/// The direct method that agents answer.
const METHOD: &str = "keyRenewal";

/// Asks the device, and puts its answer in the place of what the twin shows.
///
/// # Errors
/// [`Refusal::NotFresh`] where there is no answer, or none by the key that it names.
pub(super) async fn ask(
    hub: &Hub,
    identity: &Identity,
    keys: &KeyPair,
    reported: &mut Value,
) -> Result<(), Stop> {
    let nonce = Nonce::generate().map_err(|error| Failure::failed(error.to_string()))?;
    let payload = json!({"action": "status", "nonce": nonce.as_str()});
    let answer = hub.call_method(identity, METHOD, &payload).await?;
    let section = answer.and_then(|answer| fresh(answer, &nonce, identity, keys));
    let section = section.ok_or(Stop::Refused(Refusal::NotFresh))?;
    *reported = json!({ METHOD: section });
    Ok(())
}

/// The report in an answer, if the answer was made for this nonce with the key that the report names.
fn fresh(answer: Value, nonce: &Nonce, identity: &Identity, keys: &KeyPair) -> Option<Value> {
    let proof: Mac = serde_json::from_value(answer.get("freshProof")?.clone()).ok()?;
    let reported = json!({ METHOD: answer });
    let report = Report::read(&reported).ok().flatten()?;
    let active = report.slot(report.active?)?.fingerprint;
    let slot = KeySlot::ALL.into_iter().find(|slot| keys.fingerprint(*slot) == active)?;
    let is_fresh = report.is_answer(&proof, nonce, keys.of(slot), identity);
    let Value::Object(mut reported) = reported else { return None };
    reported.remove(METHOD).filter(|_| is_fresh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinkey_contract::Fingerprint;
    use twinkey_contract::report::{SlotReport, Status};
    use twinkey_sas::Key;

    fn key(seed: u8) -> Key {
        Key::from_bytes(&[seed; 32]).unwrap()
    }

    fn answer(nonce: &Nonce, identity: &Identity, made_with: &Key) -> Value {
        let slot = |seed| Some(SlotReport { fingerprint: Fingerprint::of(&key(seed)), proven_at: Some(1) });
        let report = Report {
            contract: 1,
            agent: "0".to_owned(),
            seal_to: None,
            sequence: 1,
            active: Some(KeySlot::Primary),
            rotation: None,
            status: Status::Idle,
            reason: None,
            clock_offset_secs: None,
            behind: None,
            primary: slot(1),
            secondary: slot(2),
            proof: None,
        };
        let mut document = report.to_patch()[METHOD].take();
        document["nonce"] = nonce.as_str().into();
        document["freshProof"] = json!(report.answer(nonce, made_with, identity));
        document
    }

    #[test]
    fn only_an_answer_for_this_nonce_by_the_key_in_use_is_taken() {
        let identity = Identity::new("d", None).unwrap();
        let keys = KeyPair { primary: key(1), secondary: key(2) };
        let [nonce, other] = [(); 2].map(|()| Nonce::generate().unwrap());
        assert!(fresh(answer(&nonce, &identity, &key(1)), &nonce, &identity, &keys).is_some());
        assert!(fresh(answer(&other, &identity, &key(1)), &nonce, &identity, &keys).is_none());
        assert!(fresh(answer(&nonce, &identity, &key(2)), &nonce, &identity, &keys).is_none());
        let of_another = answer(&nonce, &Identity::new("e", None).unwrap(), &key(1));
        assert!(fresh(of_another, &nonce, &identity, &keys).is_none());
        let mut altered = answer(&nonce, &identity, &key(1));
        altered["sequence"] = json!(2);
        assert!(fresh(altered, &nonce, &identity, &keys).is_none());
        for odd in
            [json!(null), json!({}), json!([]), json!({"freshProof": "x"}), json!({"freshProof": null})]
        {
            assert!(fresh(odd, &nonce, &identity, &keys).is_none());
        }
    }
}
