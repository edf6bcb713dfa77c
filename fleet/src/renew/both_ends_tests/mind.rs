//! The operator's decisions: the real ones, and those of the rules that were given up because a token was enough to get round
//! them. Facts that differ only in the numbers of keys are decided once.

use std::collections::HashMap;

use twinkey_contract::KeySlot;
use twinkey_contract::report::Status;
use twinkey_contract::tags;

use super::words::{
    HIGH_SEQUENCE, KeyNo, Pair, Proof, RotationNo, STRANGE, STRANGE_ROTATION, Said, Seal, Stands, Tags,
    identity, public, real_rotation, seal_of,
};
use crate::cli::KeyType;
use crate::renew::belief::Trust;
use crate::renew::plan::{self, Change, Form, Plan, Request, Slots, plan};
use crate::renew::proof::{Expected, Judgement, judge};

/// By which rules operator and agent act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// A report counts without a proof, a proof covers identity and rotation only, keys are sealed to whatever is reported, the
    /// tags hold nothing, and an offer needs no authentication.
    Former,
    Present,
}

/// What is known before something is done, but for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    pub(super) keys: Pair,
    pub(super) tags: Tags,
    pub(super) standing: Option<Stands>,
    /// The slot to renew.
    pub(super) slot: KeySlot,
    pub(super) is_incident: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Decision {
    Refuse,
    /// Erases the offer that stands.
    Settle {
        /// What goes into the tags with that.
        remembers: Option<(Seal, u8)>,
    },
    Renew(Renewal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Renewal {
    /// The slot whose key is made anew.
    pub(super) makes: Option<KeySlot>,
    pub(super) offers_primary: bool,
    pub(super) offers_secondary: bool,
    pub(super) seal: Seal,
    /// The slot whose key authenticates the offer.
    pub(super) vouching: KeySlot,
    /// What goes into the tags with the offer.
    pub(super) remembers: Option<(Seal, u8)>,
}

/// What an operator waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Awaited {
    pub(super) keys: Pair,
    pub(super) slot: KeySlot,
    pub(super) offers_primary: bool,
    pub(super) offers_secondary: bool,
    pub(super) seal: Seal,
    pub(super) rotation: RotationNo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Pending,
    Rejected,
    Proved { sequence: u8 },
}

/// For which key and rotation somebody can make proofs: one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CanProve(u128);

/// What is awaited, the sequence that was believed, and what can be proved.
type Waits = (Awaited, Option<u8>, CanProve);

pub(super) struct Mind {
    rules: Rules,
    decisions: HashMap<(Facts, Said), Decision>,
    answers: HashMap<(Awaited, Said), Answer>,
    forged_decisions: HashMap<(Facts, CanProve), Vec<(Said, Decision)>>,
    forged_answers: HashMap<Waits, Vec<(Said, Answer)>>,
}

/// The numbers that stand for what the operator compares.
const PRIMARY: KeyNo = 1;
const SECONDARY: KeyNo = 2;
const ROTATION: RotationNo = 7;

impl CanProve {
    pub(super) const NOTHING: Self = Self(0);

    fn bit(key: KeyNo, rotation: Option<RotationNo>) -> u32 {
        let rotation = match rotation {
            None => 0,
            Some(STRANGE_ROTATION) => 9,
            Some(rotation) => rotation,
        };
        u32::from(key) * 10 + u32::from(rotation)
    }

    pub(super) fn add(&mut self, key: KeyNo, rotation: Option<RotationNo>) {
        self.0 |= 1 << Self::bit(key, rotation);
    }

    /// Whoever has a key.
    pub(super) fn add_key(&mut self, key: KeyNo) {
        (0..10).for_each(|rotation| self.add(key, Some(rotation)));
    }

    fn can(self, key: KeyNo, rotation: Option<RotationNo>) -> bool {
        key != STRANGE && self.0 & (1 << Self::bit(key, rotation)) != 0
    }

    fn map(self, keys: Pair, rotation: Option<RotationNo>) -> Self {
        let mut mapped = Self::NOTHING;
        for (from, to) in [(keys.primary, PRIMARY), (keys.secondary, SECONDARY)] {
            if self.can(from, None) {
                mapped.add(to, None);
            }
            if rotation.is_some() && self.can(from, rotation) {
                mapped.add(to, Some(ROTATION));
            }
        }
        mapped
    }
}

impl Mind {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            decisions: HashMap::new(),
            answers: HashMap::new(),
            forged_decisions: HashMap::new(),
            forged_answers: HashMap::new(),
        }
    }

    pub(super) fn decide(&mut self, facts: Facts, said: Said) -> Decision {
        let standing = facts.standing.map(|standing| standing.rotation);
        let said = alike(said, facts.keys, standing);
        self.decide_alike(alike_facts(facts), said)
    }

    pub(super) fn answer(&mut self, awaited: Awaited, said: Said) -> Answer {
        let said = alike(said, awaited.keys, Some(awaited.rotation));
        self.answer_alike(alike_awaited(awaited), said)
    }

    /// Every decision that somebody can bring about who can make these proofs, each with a report that does.
    pub(super) fn forge_decisions(&mut self, facts: Facts, can_prove: CanProve) -> Vec<(Said, Decision)> {
        let standing = facts.standing.map(|standing| standing.rotation);
        let can_prove = can_prove.map(facts.keys, standing);
        let facts = alike_facts(facts);
        if let Some(known) = self.forged_decisions.get(&(facts, can_prove)) {
            return known.clone();
        }
        let believed = match facts.tags {
            Tags::Believed { sequence, .. } => Some(sequence),
            Tags::Nothing | Tags::Unreadable => None,
        };
        let mut found: Vec<(Said, Decision)> = Vec::new();
        for said in forgeries(&[Status::Trying, Status::Committed], believed, can_prove) {
            let decision = self.decide_alike(facts, said);
            if found.iter().all(|(_, known)| *known != decision) {
                found.push((said, decision));
            }
        }
        self.forged_decisions.insert((facts, can_prove), found.clone());
        found
    }

    /// The same for what an operator waits for.
    pub(super) fn forge_answers(
        &mut self,
        awaited: Awaited,
        tags: Tags,
        can_prove: CanProve,
    ) -> Vec<(Said, Answer)> {
        let can_prove = can_prove.map(awaited.keys, Some(awaited.rotation));
        let believed = match tags {
            Tags::Believed { sequence, .. } => Some(sequence),
            Tags::Nothing | Tags::Unreadable => None,
        };
        let awaited = alike_awaited(awaited);
        let name = (awaited, believed, can_prove);
        if let Some(known) = self.forged_answers.get(&name) {
            return known.clone();
        }
        let mut found: Vec<(Said, Answer)> = Vec::new();
        for said in forgeries(&[Status::Committed, Status::Rejected, Status::Invalid], believed, can_prove) {
            let answer = self.answer_alike(awaited, said);
            if found.iter().all(|(_, known)| *known != answer) {
                found.push((said, answer));
            }
        }
        self.forged_answers.insert(name, found.clone());
        found
    }

    fn decide_alike(&mut self, facts: Facts, said: Said) -> Decision {
        if let Some(decision) = self.decisions.get(&(facts, said)) {
            return *decision;
        }
        let decision = match self.rules {
            Rules::Former => former_decision(facts, said),
            Rules::Present => present_decision(facts, said),
        };
        self.decisions.insert((facts, said), decision);
        decision
    }

    fn answer_alike(&mut self, awaited: Awaited, said: Said) -> Answer {
        if let Some(answer) = self.answers.get(&(awaited, said)) {
            return *answer;
        }
        let answer = match self.rules {
            Rules::Former => former_answer(awaited, said),
            Rules::Present => present_answer(awaited, said),
        };
        self.answers.insert((awaited, said), answer);
        answer
    }
}

/// The same facts with the numbers that stand for what is compared.
fn alike_facts(facts: Facts) -> Facts {
    Facts {
        keys: Pair { primary: PRIMARY, secondary: SECONDARY },
        standing: facts.standing.map(|standing| Stands { rotation: ROTATION, ..standing }),
        ..facts
    }
}

fn alike_awaited(awaited: Awaited) -> Awaited {
    Awaited { keys: Pair { primary: PRIMARY, secondary: SECONDARY }, rotation: ROTATION, ..awaited }
}

fn alike(said: Said, keys: Pair, rotation: Option<RotationNo>) -> Said {
    let key = |key: KeyNo| match keys.slot_of(key) {
        Some(KeySlot::Primary) => PRIMARY,
        Some(KeySlot::Secondary) => SECONDARY,
        None => STRANGE,
    };
    Said {
        primary: said.primary.map(key),
        secondary: said.secondary.map(key),
        rotation: said.rotation.map(|said| if Some(said) == rotation { ROTATION } else { STRANGE_ROTATION }),
        proof: match said.proof {
            Proof::By(by) => Proof::By(key(by)),
            Proof::Missing | Proof::Wrong => said.proof,
        },
        ..said
    }
}

/// The reports that can make a difference, with every proof that can be made for them.
fn forgeries(statuses: &[Status], believed: Option<u8>, can_prove: CanProve) -> Vec<Said> {
    let held = [None, Some(PRIMARY), Some(SECONDARY), Some(STRANGE)];
    let mut all = Vec::new();
    for (primary, secondary) in held.iter().flat_map(|p| held.map(|s| (*p, s))) {
        for active in KeySlot::ALL {
            let nothing = std::iter::once((None, Status::Trying));
            for (rotation, status) in nothing.chain(statuses.iter().map(|status| (Some(ROTATION), *status))) {
                for seal in [Seal::Agent, Seal::Party] {
                    let (active, proof) = (Some(active), Proof::Missing);
                    let said =
                        Said { seal, sequence: 0, active, primary, secondary, rotation, status, proof };
                    let Some(key) = said.active_key() else { continue };
                    all.extend([said, Said { proof: Proof::Wrong, ..said }]);
                    if can_prove.can(key, rotation) {
                        let sequences = [Some(0), believed, Some(HIGH_SEQUENCE)].into_iter().flatten();
                        let proof = Proof::By(key);
                        all.extend(sequences.map(|sequence| Said { sequence, proof, ..said }));
                    }
                }
            }
        }
    }
    all
}

fn present_decision(facts: Facts, said: Said) -> Decision {
    let (identity, keys, report) = (identity(), facts.keys.real(), said.report());
    let seen = plan::Facts {
        identity: &identity,
        is_enabled: true,
        is_connected: true,
        keys: &keys,
        report: Some(&report),
        seen: facts.tags.seen(),
        standing: facts.standing.map(Stands::real),
    };
    let request = Request {
        key_type: match facts.slot {
            KeySlot::Primary => KeyType::Primary,
            KeySlot::Secondary => KeyType::Secondary,
        },
        replaces: None,
        is_forced: false,
        delivers: true,
        is_plain: false,
        trust: Trust { trusts_report: false, is_incident: facts.is_incident },
    };
    match plan(&seen, request) {
        Plan::Refuse(_) => Decision::Refuse,
        Plan::Settle { rotation: _, remembers } => Decision::Settle { remembers: in_tags(remembers) },
        Plan::Renew { change, offer, form, vouching, remembers, in_spite_of } => {
            assert_eq!(in_spite_of, None, "nobody forces anything here");
            Decision::Renew(Renewal {
                makes: match change {
                    Change::Nothing => None,
                    Change::Regenerate(slot) => Some(slot),
                    Change::RegenerateBoth | Change::Swap => panic!("nobody asks for that here"),
                },
                offers_primary: matches!(offer, Slots::One(KeySlot::Primary) | Slots::Both),
                offers_secondary: matches!(offer, Slots::One(KeySlot::Secondary) | Slots::Both),
                seal: match form {
                    Some(Form::Sealed(public_key)) => seal_of(public_key),
                    Some(Form::Plain) | None => panic!("every key is sealed here"),
                },
                vouching,
                remembers: in_tags(remembers),
            })
        }
    }
}

fn in_tags(remembers: Option<tags::Believed>) -> Option<(Seal, u8)> {
    remembers.map(|believed| (seal_of(believed.seal_to), u8::try_from(believed.sequence).unwrap()))
}

fn present_answer(awaited: Awaited, said: Said) -> Answer {
    let (identity, keys) = (identity(), awaited.keys.real());
    let expected = Expected {
        identity: &identity,
        keys: &keys,
        slots: match (awaited.offers_primary, awaited.offers_secondary) {
            (false, false) => Slots::None,
            (true, false) => Slots::One(KeySlot::Primary),
            (false, true) => Slots::One(KeySlot::Secondary),
            (true, true) => Slots::Both,
        },
        active: Some(awaited.slot),
        seal_to: Some(public(awaited.seal)),
        is_incident: false,
    };
    match judge(&said.report(), real_rotation(awaited.rotation), &expected) {
        Judgement::Pending(_) => Answer::Pending,
        Judgement::Rejected { .. } => Answer::Rejected,
        Judgement::Proved { sequence, .. } => Answer::Proved { sequence: u8::try_from(sequence).unwrap() },
    }
}

/// Whether the device has committed this rotation, by the former proof.
fn is_committed_formerly(said: Said, rotation: RotationNo, keys: Pair) -> bool {
    said.status == Status::Committed
        && said.rotation == Some(rotation)
        && said.active.is_some_and(|active| {
            said.held(active) == Some(keys.of(active)) && said.proof == Proof::By(keys.of(active))
        })
}

fn former_decision(facts: Facts, said: Said) -> Decision {
    let (slot, keys) = (facts.slot, facts.keys);
    let is_finished = facts.standing.is_some_and(|standing| {
        standing.covers(slot)
            && said.active == Some(slot)
            && is_committed_formerly(said, standing.rotation, keys)
    });
    if is_finished {
        return Decision::Settle { remembers: None };
    }
    let (Some(active), Some(lives_on)) = (said.active, said.active_key()) else { return Decision::Refuse };
    let spare = said.held(active.other());
    let renewal = |makes, is_mislabelled| {
        Decision::Renew(Renewal {
            makes,
            offers_primary: slot == KeySlot::Primary || is_mislabelled,
            offers_secondary: slot == KeySlot::Secondary || is_mislabelled,
            seal: said.seal,
            vouching: slot.other(),
            remembers: None,
        })
    };
    if !keys.holds(lives_on) {
        let hands_over = spare.is_some_and(|spare| keys.of(slot.other()) == spare);
        return if hands_over { renewal(None, false) } else { Decision::Refuse };
    }
    let is_proof_false = match said.proof {
        Proof::Missing => false,
        Proof::Wrong => true,
        Proof::By(key) => key != lives_on,
    };
    if (said.rotation.is_some() && is_proof_false) || keys.of(slot.other()) != lives_on {
        return Decision::Refuse;
    }
    let is_unfinished = spare.is_some_and(|spare| spare != keys.of(slot))
        || facts.standing.is_some_and(|standing| standing.covers(slot));
    renewal((!is_unfinished).then_some(slot), active == slot)
}

fn former_answer(awaited: Awaited, said: Said) -> Answer {
    if said.rotation != Some(awaited.rotation) {
        return Answer::Pending;
    }
    let holds = |slot, is_offered: bool| !is_offered || said.held(slot) == Some(awaited.keys.of(slot));
    match said.status {
        Status::Rejected | Status::Invalid => Answer::Rejected,
        Status::Committed
            if is_committed_formerly(said, awaited.rotation, awaited.keys)
                && holds(KeySlot::Primary, awaited.offers_primary)
                && holds(KeySlot::Secondary, awaited.offers_secondary)
                && said.active == Some(awaited.slot) =>
        {
            Answer::Proved { sequence: said.sequence }
        }
        Status::Committed | Status::Idle | Status::Trying | Status::Waiting => Answer::Pending,
    }
}
