//! Somebody who may write twins, and holds no key of the device. The public key to seal to stands
//! in the twin.

use serde_json::Value;
use twinkey_contract::offer::{Offer, OfferedKey};
use twinkey_contract::sealing::SealingKey;
use twinkey_sas::Key;

use crate::operator::{fresh_rotation, offered_key, without_nulls};
use crate::tally::Seen;
use crate::world::{Inner, Standing, Voucher, identity, slot_at};

/// One of the things that such a person may try.
pub(crate) fn writes(w: &mut Inner, sealing_key: &SealingKey) {
    match w.rng.below(5) {
        0 | 1 => copies_back(w),
        _ => offers(w, sealing_key, true),
    }
}

/// A key of the stranger's own, which no registry has. Sealing takes its time, so not every offer
/// in a flood that the agent must refuse has a key that would open.
pub(crate) fn offers(w: &mut Inner, sealing_key: &SealingKey, opens: bool) {
    let rotation = fresh_rotation(w);
    let slot = w.rng.below(2) as usize;
    let key = w.mint();
    let seals = !w.traits.allows_unsealed || (opens && w.rng.per_mille(500));
    let offered = Some(if seals && !opens && !w.traits.allows_unauthenticated {
        OfferedKey::Sealed(w.rng.bytes().repeat(3))
    } else {
        offered_key(&w.keys[key].key, slot_at(slot), rotation, sealing_key, seals)
    });
    let mut keys = [None, None];
    keys[slot] = Some(key);
    let (primary, secondary) = if slot == 0 { (offered, None) } else { (None, offered) };
    let mut offer = Offer { rotation, primary, secondary, auth: None };
    // A flood is of the kind that the agent can do least against.
    let is_taken = !opens && w.traits.allows_unauthenticated;
    let voucher = match if is_taken { 0 } else { w.rng.below(3) } {
        0 => {
            w.tally.count(Seen::StrangerWithoutAuth);
            Voucher::Nobody
        }
        1 => {
            w.tally.count(Seen::StrangerWithFalseAuth);
            offer.authenticate(&Key::from_bytes(&w.rng.bytes()).unwrap(), &identity());
            Voucher::Nonsense
        }
        // What once stood beside other keys.
        _ => {
            let seen: Vec<Value> =
                w.offers.iter().filter_map(|offer| offer.section.get("auth").cloned()).collect();
            let Some(auth) = (!seen.is_empty()).then(|| w.rng.pick_clone(&seen)) else { return };
            w.tally.count(Seen::StrangerWithBorrowedAuth);
            offer.auth = serde_json::from_value(auth).ok();
            Voucher::Nonsense
        }
    };
    let section = offer.to_patch().get("keyRenewal").map(without_nulls).unwrap_or_default();
    let standing = w.note_offer(rotation.0.as_u128(), keys, voucher, section.clone());
    w.log(|| format!("stranger: offers a key as {rotation}, {voucher:?}"));
    w.desire_as_stranger(section, standing);
}

/// An offer that the operator made once.
fn copies_back(w: &mut Inner) {
    let genuine: Vec<usize> = (0..w.offers.len())
        .filter(|index| matches!(w.offers[*index].voucher, Voucher::Key(_)))
        .filter(|index| w.standing != Standing::Offer(*index))
        .collect();
    if genuine.is_empty() {
        return;
    }
    let (rotation, keys, voucher, section) = {
        let offer = &w.offers[w.rng.pick(&genuine)];
        (offer.rotation, offer.keys, offer.voucher, offer.section.clone())
    };
    w.tally.count(Seen::StrangerCopiedBack);
    let standing = w.note_offer(rotation, keys, voucher, section.clone());
    w.log(|| format!("stranger: copies {rotation:x} back"));
    w.desire_as_stranger(section, standing);
}
