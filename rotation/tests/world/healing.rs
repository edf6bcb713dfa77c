//! I7: from now on the disk works, the network is up, every key has reached the whole hub, which answers
//! truthfully, and the operator rests. Then a fair schedule must lead to rest.

use std::collections::HashMap;

use twinkey_rotation::{Desired, Disk, Input, KeySlot, Policy, Standing, Status, Timer, Verdict};

use super::{ACCEPTED, Act, Event, REFUSED, World};

/// The most events from any state to rest. Sixteen timers' worth of attempts, with their writes and documents;
/// the searches print what they needed.
pub(crate) const STEPS_TO_REST_MAX: u16 = 120;

/// What a hub does to the live connection of a device when it refuses a second one. Inferred, not documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OnRefusal {
    KeepsLive,
    /// The device hears of the refusal first.
    RefusesThenDrops,
    /// The device loses its connection first.
    DropsThenRefuses,
}

impl OnRefusal {
    pub(crate) const ALL: [Self; 3] = [Self::KeepsLive, Self::RefusesThenDrops, Self::DropsThenRefuses];
}

/// A healthy world, with what is still to come in it.
#[derive(Clone)]
struct Patient {
    world: World,
    on_refusal: OnRefusal,
    is_document_due: bool,
    is_loss_due: bool,
    /// The timer after which the next one is looked for: every armed timer has its turn.
    turn: usize,
}

/// How healing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rest {
    pub(crate) steps: u16,
    pub(crate) status: Status,
}

/// Healed worlds that are known to come to rest, so that each is run once.
pub(crate) type Known = HashMap<u128, Rest>;

/// Heals a copy of `world` and runs it to rest. `None`: no key that the machine has, or could be given, is one
/// that the hub accepts, so that it rightly tries for ever.
pub(crate) fn heal(
    world: &World,
    policy: &Policy,
    now: &Act,
    on_refusal: OnRefusal,
    known: &mut Known,
) -> Result<Option<Rest>, String> {
    if !has_way_out(world, now) {
        return Ok(None);
    }
    let must_commit = must_commit(world, now);
    let mut patient = Patient {
        world: world.clone(),
        on_refusal,
        is_document_due: world.live.is_some(),
        is_loss_due: false,
        turn: 0,
    };
    let mut names = Vec::new();
    let mut events = Vec::new();
    let end = loop {
        let name = patient.name();
        if let Some(rest) = known.get(&name) {
            break *rest;
        }
        names.push(name);
        if patient.is_at_rest(now) {
            let describe = |error| format!("{error}\n  healed by {events:?}");
            patient.world.check_rest(now.document).map_err(describe)?;
            let status = patient.world.reported.map_or(Status::Idle, |report| report.status);
            break Rest { steps: 0, status };
        }
        if events.len() >= usize::from(STEPS_TO_REST_MAX) {
            return Err(format!(
                "I7: {on_refusal:?}: no rest within {STEPS_TO_REST_MAX} steps\n  {events:?}\n  {:?}",
                patient.world.state
            ));
        }
        let event = patient.next_event(now)?;
        events.push(event);
        let before = patient.world.state;
        let judged =
            patient.world.apply(policy, event, 0).and_then(|_| patient.world.check_way_out(&before, now));
        judged.map_err(|error| format!("{error}\n  while healing by {events:?}"))?;
    };
    for (step, name) in names.iter().rev().enumerate() {
        let steps = end.steps.saturating_add(u16::try_from(step).unwrap_or(u16::MAX));
        known.insert(*name, Rest { steps, ..end });
    }
    let begun = names.first().and_then(|name| known.get(name)).copied().unwrap_or(end);
    if begun.steps > STEPS_TO_REST_MAX {
        return Err(format!("I7: {} steps to rest", begun.steps));
    }
    if must_commit && end.status != Status::Committed {
        return Err(format!(
            "I7: {on_refusal:?}: the offered keys are good, and yet the machine rests on {:?}\n  {events:?}",
            end.status
        ));
    }
    Ok(Some(begun))
}

/// Whether the hub accepts a key of the ring, or one in the document that a live connection brings.
fn has_way_out(world: &World, now: &Act) -> bool {
    let held = world.state.ring.keys_in_order();
    let offered = match now.document {
        Desired::Offer(offer) if world.live.is_some() => KeySlot::ALL.map(|slot| *offer.keys.of(slot)),
        Desired::Offer(_) | Desired::Nothing | Desired::Invalid(_) => [None; 2],
    };
    held.into_iter().chain(offered).flatten().any(|key| now.accepts(key))
}

/// Whether only a committed rotation will do: every offered key is the registry's, and none was set aside when
/// the hub was less truthful.
fn must_commit(world: &World, now: &Act) -> bool {
    let Desired::Offer(offer) = now.document else {
        return false;
    };
    let ring = &world.state.ring;
    let is_known =
        ring.rotation.is_some_and(|known| known.id == offer.rotation && known.offered == offer.keys);
    let was_rejected = is_known && ring.rotation.is_some_and(|r| r.verdict == Some(Verdict::Rejected));
    let is_any_set_aside = is_known
        && KeySlot::ALL.into_iter().any(|slot| {
            ring.slots.of(slot).candidate.is_some_and(|candidate| {
                candidate.standing == Standing::Spare && *offer.keys.of(slot) == Some(candidate.key)
            })
        });
    let is_good = KeySlot::ALL.into_iter().all(|slot| offer.keys.of(slot).is_none_or(|key| now.accepts(key)));
    is_good && !was_rejected && !is_any_set_aside
}

impl Patient {
    fn name(&self) -> u128 {
        let to_come = (self.on_refusal, self.is_document_due, self.is_loss_due, self.turn);
        self.world.fingerprint(to_come)
    }

    fn is_at_rest(&self, now: &Act) -> bool {
        let state = &self.world.state;
        !self.is_document_due
            && !self.is_loss_due
            && self.world.document == Some(now.document)
            && self.world.live.is_some_and(|key| now.accepts(key))
            && self.world.trying.is_none()
            && state.disk == Disk::Idle
            && state.ring.says_the_same_as(&state.durable)
            && state.ring.slot_on_trial().is_none()
    }

    fn next_event(&mut self, now: &Act) -> Result<Event, String> {
        let input = if self.is_loss_due {
            self.is_loss_due = false;
            Input::Lost
        } else if self.world.writing.is_some() {
            Input::Stored(true)
        } else if self.is_document_due {
            self.is_document_due = false;
            Input::Desired(now.document)
        } else if let Some(key) = self.world.trying {
            self.answer(now.accepts(key))
        } else {
            Input::Fired(self.next_timer()?)
        };
        Ok(Event::Told(input))
    }

    fn answer(&mut self, accepts: bool) -> Input {
        if accepts {
            // Every new connection begins with reading the document.
            self.is_document_due = true;
            return ACCEPTED;
        }
        match self.on_refusal {
            OnRefusal::KeepsLive => REFUSED,
            OnRefusal::RefusesThenDrops => {
                self.is_loss_due = self.world.live.is_some();
                REFUSED
            }
            OnRefusal::DropsThenRefuses if self.world.live.is_some() => Input::Lost,
            OnRefusal::DropsThenRefuses => REFUSED,
        }
    }

    fn next_timer(&mut self) -> Result<Timer, String> {
        let in_turn = |ahead: usize| (self.turn + ahead) % Timer::COUNT;
        let index = (0..Timer::COUNT)
            .map(in_turn)
            .find(|index| self.world.armed[*index])
            .ok_or("I4: nothing under way and no timer armed")?;
        self.turn = (index + 1) % Timer::COUNT;
        Ok(Timer::ALL[index])
    }
}
