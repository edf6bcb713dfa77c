//! Putting an offer into a twin.

use serde_json::{Map, Value, json};
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::sealing::{Binding, SealingPublicKey};
use twinkey_contract::wiped::Wiped;
use twinkey_contract::{Identity, KeySlot, RotationId, tags};
use twinkey_sas::Key;

use super::change::lint;
use super::device::{Event, Stop, Watch};
use super::plan::{Form, Slots};
use crate::clock::unix_now_millis;
use crate::failure::Failure;
use crate::hub::{Hub, KeyPair};

/// What is to be offered, and how.
#[derive(Debug)]
pub(super) struct ToOffer {
    pub(super) slots: Slots,
    pub(super) form: Form,
    /// The key of the device that authenticates the offer.
    pub(super) vouching: Key,
    /// What the tags are to say from now on.
    pub(super) remembers: Option<tags::Believed>,
}

impl ToOffer {
    pub(super) fn seal_to(&self) -> Option<SealingPublicKey> {
        match self.form {
            Form::Sealed(seal_to) => Some(seal_to),
            Form::Plain => None,
        }
    }

    /// Puts it into the twin, with what the tags are to say, in one change.
    pub(super) async fn put(
        &self,
        hub: &Hub,
        identity: &Identity,
        keys: &KeyPair,
        watch: Watch<'_>,
    ) -> Result<RotationId, Stop> {
        let slots: &[KeySlot] = match self.slots {
            Slots::None => &[],
            Slots::One(KeySlot::Primary) => &[KeySlot::Primary],
            Slots::One(KeySlot::Secondary) => &[KeySlot::Secondary],
            Slots::Both => &KeySlot::ALL,
        };
        for slot in slots {
            lint(identity, *slot, keys.of(*slot))?;
        }
        if self.form == Form::Plain {
            let text = "the offer is not sealed, as --plain says: who may read the twin can read the key until it is erased";
            watch(Event::Note(text.to_owned()));
        }
        watch(Event::Step("offering the key"));
        let keys: Vec<_> = slots.iter().map(|slot| (*slot, keys.of(*slot))).collect();
        put_offer(hub, identity, &keys, self.form, &self.vouching, self.remembers).await
    }
}

/// Puts an offer into the twin, authenticated with `vouching`. What is to be remembered of the device goes into the tags with
/// it: so no key is ever sealed to a public key that the tags don't name.
pub(crate) async fn put_offer(
    hub: &Hub,
    identity: &Identity,
    keys: &[(KeySlot, &Key)],
    form: Form,
    vouching: &Key,
    remembers: Option<tags::Believed>,
) -> Result<RotationId, Stop> {
    let rotation = RotationId::generate(unix_now_millis()).map_err(|e| Failure::failed(e.to_string()))?;
    let mut offer = Offer { rotation, primary: None, secondary: None, auth: None };
    for &(slot, key) in keys {
        let offered = match form {
            Form::Sealed(public) => OfferedKey::Sealed(
                public
                    .seal(&Binding { identity, slot, rotation }, key)
                    .map_err(|e| Failure::failed(format!("seal the key for the agent: {e}")))?,
            ),
            Form::Plain => OfferedKey::Plain(key.clone()),
        };
        match slot {
            KeySlot::Primary => offer.primary = Some(offered),
            KeySlot::Secondary => offer.secondary = Some(offered),
        }
    }
    offer.authenticate(vouching, identity);
    // It may hold keys: moved into place, for `json!` would leave copies behind.
    let desired = Map::from_iter([("desired".to_owned(), offer.to_patch())]);
    let mut patch = Map::from_iter([("properties".to_owned(), Value::Object(desired))]);
    if let Some(believed) = remembers {
        patch.insert("tags".to_owned(), json!({"keyRenewal": believed.to_tags()}));
    }
    let patch = Wiped::from(Value::Object(patch));
    hub.patch_twin(identity, &patch, None).await?;
    Ok(rotation)
}
