//! What stands in a twin: an operator's offer, and taking it out together with what else a run has there.

use serde_json::{Map, Value, json};
use twinkey_contract::offer::Offer;
use twinkey_contract::{Identity, KeySlot, RotationId, tags};

use super::device::Mark;
use super::holder::Holder;
use super::lease;
use super::plan::Standing;
use super::renewer::Hold;
use crate::failure::Failure;
use crate::hub::{Hub, KeyPair, Twin};

/// Most attempts to erase an offer while the twin changes under our hands.
const ERASE_ATTEMPTS_MAX: u32 = 5;

/// The offer of an operator that stands in the twin. Anything else that stands there does not count, since everybody with the
/// right to write twins can put it there: the next offer takes its place.
///
/// In an incident a thief has a key, and wants to keep it in the registry: so an offer of a slot does not count if that slot's own key
/// authenticates it. An operator takes the other one, on which the device lives.
pub(crate) fn standing(twin: &Twin, keys: &KeyPair, is_incident: bool) -> Option<Standing> {
    let offer = twin.offer().ok()??;
    let identity = twin.identity();
    let (primary, secondary) = (offer.primary.is_some(), offer.secondary.is_some());
    let counts = |slot: KeySlot| {
        let is_offered = match slot {
            KeySlot::Primary => primary,
            KeySlot::Secondary => secondary,
        };
        !(is_incident && is_offered) && offer.is_authentic(keys.of(slot), &identity)
    };
    let counts = KeySlot::ALL.into_iter().any(counts);
    counts.then_some(Standing { rotation: offer.rotation, primary, secondary })
}

/// Erases the offer of `rotation`, and no newer one: `twin` is where it was seen last.
pub(crate) async fn erase(hub: &Hub, id: &Identity, rotation: RotationId, twin: Twin) -> Result<(), Failure> {
    clear(hub, id, twin, Hold { offer: Some(rotation), ..Hold::default() }, &Holder::draw()?, None).await
}

/// Takes out of the twin what a run has in it, in one change under the twin's etag, and leaves a mark where one is wanted.
pub(super) async fn clear(
    hub: &Hub,
    id: &Identity,
    mut twin: Twin,
    hold: Hold,
    own: &Holder,
    mark: Option<&Mark>,
) -> Result<(), Failure> {
    for _ in 0..ERASE_ATTEMPTS_MAX {
        let erases = hold.offer.is_some_and(|rotation| stands(&twin, rotation));
        let mut tags = Map::new();
        if (hold.lease.is_some() || erases) && lease::may_be_cleared(hub, &twin, own) {
            tags.insert("lease".to_owned(), Value::Null);
        }
        if let Some(believed) = still_to_remember(&twin, hold) {
            tags.extend(believed.to_tags());
        }
        if let Some(mark) = mark {
            tags.insert("rollout".to_owned(), mark.rollout.as_str().into());
            tags.insert("done".to_owned(), mark.is_done.into());
        }
        let mut patch = Map::new();
        if erases {
            patch.insert("properties".to_owned(), json!({"desired": Offer::erase_patch()}));
        }
        if !tags.is_empty() {
            patch.insert("tags".to_owned(), json!({"keyRenewal": tags}));
        }
        if patch.is_empty() {
            own.has_given_up(id);
            return Ok(());
        }
        match hub.patch_twin(id, &Value::Object(patch), Some(&twin.etag)).await {
            Ok(_) => {
                own.has_given_up(id);
                return Ok(());
            }
            Err(error) if error.status() == Some(412) => twin = hub.twin(id).await?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::failed(format!("the offer still stands in the twin of {id}, which changes all the time"))
        .next("run the same command again: it erases the offer and nothing else"))
}

/// What the tags are to say of the device. Another run's offer has put there what that one believes, and this may be older.
fn still_to_remember(twin: &Twin, hold: Hold) -> Option<tags::Believed> {
    let is_anothers = |offer: Offer| Some(offer.rotation) != hold.offer;
    hold.believed.filter(|_| !twin.offer().ok().flatten().is_some_and(is_anothers))
}

/// Whether the offer of `rotation` stands in the twin.
pub(super) fn stands(twin: &Twin, rotation: RotationId) -> bool {
    match twin.offer() {
        Ok(offer) => offer.is_some_and(|offer| offer.rotation == rotation),
        Err(unreadable) => unreadable.rotation == Some(rotation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinkey_contract::offer::OfferedKey;
    use twinkey_contract::sealing::SealingPublicKey;
    use twinkey_sas::Key;

    fn key(seed: u8) -> Key {
        Key::from_bytes(&[seed; 32]).unwrap()
    }

    fn twin(offer: &Value) -> Twin {
        serde_json::from_value(json!({"deviceId": "d1", "etag": "1", "properties": {"desired": offer}}))
            .unwrap()
    }

    #[test]
    fn what_a_run_has_believed_is_not_written_over_what_the_run_of_a_later_offer_has() {
        let (own, anothers) = (RotationId::generate(1).unwrap(), RotationId::generate(2).unwrap());
        let seal_to = SealingPublicKey([7; 32]);
        let believed = Some(tags::Believed { seal_to, sequence: 7 });
        let hold = Hold { lease: None, offer: Some(own), believed };
        let offered = |rotation| {
            let offer =
                Offer { rotation, primary: Some(OfferedKey::Plain(key(1))), secondary: None, auth: None };
            twin(&offer.to_patch())
        };
        assert_eq!(still_to_remember(&offered(own), hold), believed);
        assert_eq!(still_to_remember(&twin(&json!({})), hold), believed);
        assert_eq!(still_to_remember(&offered(anothers), hold), None);
        assert_eq!(still_to_remember(&offered(anothers), Hold { offer: None, ..hold }), None);
    }

    #[test]
    fn only_an_offer_that_a_key_of_the_registry_authenticates_counts_as_standing() {
        let keys = KeyPair { primary: key(1), secondary: key(2) };
        let identity = Identity::new("d1", None).unwrap();
        let rotation = RotationId::generate(1).unwrap();
        let secondary = Some(OfferedKey::Sealed(vec![7; 80]));
        let mut offer = Offer { rotation, primary: None, secondary, auth: None };
        let stands = |offer: &Offer| standing(&twin(&offer.to_patch()), &keys, false);
        assert_eq!(stands(&offer), None);
        for (seed, counts) in [(1, true), (2, true), (3, false)] {
            offer.authenticate(&key(seed), &identity);
            let expected = Standing { rotation, primary: false, secondary: true };
            assert_eq!(stands(&offer), counts.then_some(expected), "made with key {seed}");
        }
        offer.authenticate(&key(1), &Identity::new("d2", None).unwrap());
        assert_eq!(stands(&offer), None);
        // Altered since.
        offer.authenticate(&key(1), &identity);
        offer.primary = offer.secondary.take();
        assert_eq!(stands(&offer), None);
        assert_eq!(standing(&twin(&json!({})), &keys, false), None);
    }

    #[test]
    fn in_an_incident_an_offer_that_the_key_of_its_own_slot_authenticates_counts_for_nothing() {
        let keys = KeyPair { primary: key(1), secondary: key(2) };
        let identity = Identity::new("d1", None).unwrap();
        let rotation = RotationId::generate(1).unwrap();
        let sealed = || Some(OfferedKey::Sealed(vec![7; 80]));
        for (primary, secondary, seed, counts) in [
            (false, true, 1, true),
            (false, true, 2, false),
            (true, false, 1, false),
            (true, false, 2, true),
            (true, true, 1, false),
            (true, true, 2, false),
        ] {
            let (primary, secondary) = (primary.then(sealed).flatten(), secondary.then(sealed).flatten());
            let mut offer = Offer { rotation, primary, secondary, auth: None };
            offer.authenticate(&key(seed), &identity);
            let stands = |is_incident| standing(&twin(&offer.to_patch()), &keys, is_incident).is_some();
            assert!(stands(false));
            assert_eq!(stands(true), counts, "{offer:?} made with key {seed}");
        }
    }
}
