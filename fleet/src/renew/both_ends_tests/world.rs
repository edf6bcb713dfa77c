//! The world: registry, twin, agent, two operators and a party; what can happen next in it, and what must never be so.
//!
//! Who can write something at any time can write it just before it is read, and put back what stood there. So the party's
//! writes are no steps of their own: wherever somebody reads, there is one step for each thing that the party can have put
//! there and that makes a difference.

use std::collections::HashMap;
use std::fmt;

use twinkey_contract::KeySlot;
use twinkey_rotation::Disk;

use super::machine::{Agent, Document, Machine, Told};
use super::mind::{Answer, Awaited, CanProve, Decision, Facts, Mind, Renewal, Rules};
use super::words::{
    HIGH_SEQUENCE, KeyNo, Offer, Pair, Proof, RotationNo, STRANGE_ROTATION, Said, Seal, Stands, Tags,
};

/// How many offers a world can hold.
const OFFERS: usize = 5;

/// Who wants to have the device's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    Nobody,
    /// May connect as the device, read the twin, and write any reported properties.
    Token,
    /// May write desired properties and tags.
    Twins,
    /// As with a token, and can make proofs with this key.
    Key(KeyNo),
}

/// What a world starts from, and what may happen in it.
pub(super) struct Story {
    pub(super) name: &'static str,
    pub(super) rules: Rules,
    pub(super) party: Party,
    /// What operators have believed before.
    pub(super) tags: Tags,
    pub(super) is_incident: bool,
    /// Whether the operators have the hub make keys, under the lease, or make them, under the identity's etag.
    pub(super) keys_by_hub: bool,
    pub(super) operators: usize,
    /// New keys, offers, power cuts, crashes of operators, and lost connections at most.
    pub(super) keys_max: u8,
    pub(super) offers_max: u8,
    pub(super) power_cuts_max: u8,
    pub(super) crashes_max: u8,
    pub(super) losses_max: u8,
    /// Whether somebody regenerates the key in use by hand, once.
    pub(super) may_be_done_by_hand: bool,
    /// Whether the party may also erase an operator's lease.
    pub(super) may_break_lease: bool,
}

/// How far an operator is with one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stage {
    Resting,
    /// It has read the registry.
    HasKeys {
        keys: [KeyNo; 2],
        slot: KeySlot,
    },
    /// It is about to take the lease.
    WantsLease {
        slot: KeySlot,
    },
    /// It is about to change the registry.
    Changing {
        keys: [KeyNo; 2],
        slot: KeySlot,
        renewal: u16,
        is_leased: bool,
    },
    /// It is about to put the offer into the twin, with what was believed.
    Offering {
        keys: [KeyNo; 2],
        slot: KeySlot,
        renewal: u16,
        vouching: KeyNo,
        is_leased: bool,
    },
    /// It waits for the device's proof.
    Waiting {
        keys: [KeyNo; 2],
        slot: KeySlot,
        renewal: u16,
        rotation: RotationNo,
    },
    /// It is about to erase the offer, and to write what was believed.
    Clearing {
        rotation: Option<RotationNo>,
        believed: Option<(Believed, u8)>,
    },
}

/// A [`Seal`] with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Believed {
    Agent,
    Party,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct World {
    registry: Pair,
    keys_made: u8,
    offers: [Option<Offer>; OFFERS],
    /// The one that stands in the twin.
    standing: Option<RotationNo>,
    tags: Tags,
    lease: Option<u8>,
    agent: Agent,
    /// What stands in the reported properties, as the agent has put it there.
    reported: Option<Said>,
    /// The proven reports of the agent, which the party can put there again.
    past: u32,
    operators: [Stage; 2],
    power_cuts: u8,
    crashes: u8,
    losses: u8,
    was_done_by_hand: bool,
}

/// What must never be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Harm {
    /// The registry has no key that is surely on the device's disk.
    Dark,
    /// The party has got a key.
    Learnt,
    /// A key in use was regenerated.
    KeyInUse,
    /// That, though the party has no key in the registry, or the agent does not surely have the key that stays.
    KeyInUseWithoutCause,
}

/// Something that happens.
#[derive(Clone, Copy)]
pub(super) enum Event {
    Agent(Told),
    AgentReports,
    ByHand(KeySlot),
    Begins(u8, KeySlot),
    Decides(u8, Option<Said>, Decision),
    TakesLease(u8, Option<Said>, Decision),
    Changes(u8),
    Offers(u8, RotationNo, Seal),
    Hears(u8, Option<Said>, Answer),
    Clears(u8),
    Crashes(u8),
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |said: &Option<Said>| match said {
            Some(said) => format!("{said:?}"),
            None => "the agent's report".to_owned(),
        };
        match self {
            Self::Agent(told) => write!(f, "the agent: {told:?}"),
            Self::AgentReports => write!(f, "the agent's report arrives"),
            Self::ByHand(slot) => write!(f, "somebody regenerates the {slot} key by hand"),
            Self::Begins(who, slot) => write!(f, "operator {who} reads the registry, for the {slot} slot"),
            Self::Decides(who, said, decision) => {
                write!(f, "operator {who} reads the twin ({}): {decision:?}", shown(said))
            }
            Self::TakesLease(who, said, decision) => {
                write!(f, "operator {who} takes the lease, reads the twin ({}): {decision:?}", shown(said))
            }
            Self::Changes(who) => write!(f, "operator {who} has the key made"),
            Self::Offers(who, rotation, seal) => {
                write!(f, "operator {who} puts offer {rotation}, sealed to {seal:?}")
            }
            Self::Hears(who, said, answer) => {
                write!(f, "operator {who} reads the twin ({}): {answer:?}", shown(said))
            }
            Self::Clears(who) => write!(f, "operator {who} erases its offer"),
            Self::Crashes(who) => write!(f, "operator {who} crashes"),
        }
    }
}

/// What is computed once for all worlds of a story.
pub(super) struct Physics {
    pub(super) story: Story,
    pub(super) machine: Machine,
    mind: Mind,
    renewals: Vec<Renewal>,
    pasts: Vec<Vec<Said>>,
    pasts_by_content: HashMap<Vec<Said>, u32>,
    pasts_after: HashMap<(u32, Agent, Pair), u32>,
}

/// A step: what happens, what comes of it, and what harm it does by itself.
pub(super) struct Step {
    pub(super) event: Event,
    pub(super) world: World,
    pub(super) harms: Vec<Harm>,
}

impl Physics {
    pub(super) fn new(story: Story) -> Self {
        let is_present = story.rules == Rules::Present;
        let mut physics = Self {
            machine: Machine::new(is_present),
            mind: Mind::new(story.rules),
            renewals: Vec::new(),
            pasts: Vec::new(),
            pasts_by_content: HashMap::new(),
            pasts_after: HashMap::new(),
            story,
        };
        physics.past_no(Vec::new());
        physics
    }

    pub(super) fn start(&mut self) -> World {
        World {
            registry: Pair { primary: 1, secondary: 2 },
            keys_made: 2,
            offers: [None; OFFERS],
            standing: None,
            tags: self.story.tags,
            lease: None,
            agent: self.machine.provisioned(1, 2),
            reported: None,
            past: 0,
            operators: [Stage::Resting; 2],
            power_cuts: 0,
            crashes: 0,
            losses: 0,
            was_done_by_hand: false,
        }
    }

    fn past_no(&mut self, past: Vec<Said>) -> u32 {
        if let Some(number) = self.pasts_by_content.get(&past) {
            return *number;
        }
        let number = u32::try_from(self.pasts.len()).unwrap();
        self.pasts.push(past.clone());
        self.pasts_by_content.insert(past, number);
        number
    }

    fn renewal_no(&mut self, renewal: Renewal) -> u16 {
        let known = self.renewals.iter().position(|known| *known == renewal);
        let number = known.unwrap_or_else(|| {
            self.renewals.push(renewal);
            self.renewals.len() - 1
        });
        u16::try_from(number).unwrap()
    }

    /// Whether the party writes reported properties, so that they tell nothing by themselves.
    fn reports_are_the_partys(&self) -> bool {
        match self.story.party {
            Party::Token | Party::Key(_) => true,
            Party::Nobody | Party::Twins => false,
        }
    }

    /// The harm that stands in a world, whatever comes next.
    pub(super) fn harm(&self, world: &World) -> Option<Harm> {
        let survives = self.machine.has_in_every_image(world.agent, |key| world.registry.holds(key));
        (!survives).then_some(Harm::Dark)
    }

    /// Everything that can happen next.
    pub(super) fn steps(&mut self, world: &World) -> Vec<Step> {
        let mut steps = Vec::new();
        self.agent_steps(world, &mut steps);
        if self.story.may_be_done_by_hand && !world.was_done_by_hand {
            self.steps_by_hand(world, &mut steps);
        }
        for who in 0..self.story.operators {
            self.operator_steps(world, who, &mut steps);
        }
        for step in &mut steps {
            step.world.operators_in_order(self.story.operators);
        }
        steps
    }

    fn agent_steps(&mut self, world: &World, steps: &mut Vec<Step>) {
        let agent = world.agent;
        let mut all: Vec<Told> = self.machine.timers(agent).map(Told::Fired).collect();
        let state = self.machine.state(agent);
        let (is_live, is_writing) = (state.live.is_some(), matches!(state.disk, Disk::Writing { .. }));
        if is_writing {
            all.push(Told::Stored);
        }
        if let Some(key) = self.machine.trying(agent) {
            all.push(if world.registry.holds(key) { Told::Accepted } else { Told::Refused });
        }
        if is_live {
            all.extend(self.documents(world).into_iter().map(Told::Read));
            if world.losses < self.story.losses_max {
                all.push(Told::Lost);
            }
        }
        if world.power_cuts < self.story.power_cuts_max {
            all.push(Told::PowerCut { is_newer: false });
            if is_writing {
                all.push(Told::PowerCut { is_newer: true });
            }
        }
        for told in all {
            let next = self.machine.tell(agent, told);
            if next == agent {
                continue;
            }
            let mut world = World { agent: next, ..*world };
            match told {
                Told::Lost => world.losses += 1,
                Told::PowerCut { .. } => world.power_cuts += 1,
                Told::Stored | Told::Accepted | Told::Refused | Told::Fired(_) | Told::Read(_) => {}
            }
            self.remember(&mut world);
            steps.push(Step { event: Event::Agent(told), world, harms: Vec::new() });
        }
        let said = self.machine.said(agent);
        if !self.reports_are_the_partys() && is_live && world.reported != Some(said) {
            let world = World { reported: Some(said), ..*world };
            steps.push(Step { event: Event::AgentReports, world, harms: Vec::new() });
        }
    }

    /// What the agent may read in the desired properties.
    fn documents(&self, world: &World) -> Vec<Document> {
        let offer = |rotation: RotationNo| {
            world.offers[usize::from(rotation) - 1].map(|offer| Document::Offer(rotation, offer))
        };
        let standing = world.standing.and_then(offer).unwrap_or(Document::Nothing);
        if self.story.party != Party::Twins {
            return vec![standing];
        }
        let mut all = vec![Document::Nothing, Document::Unauthentic(STRANGE_ROTATION)];
        all.extend((1..=world.offers_put()).filter_map(offer));
        all.extend(world.standing.map(Document::Unauthentic));
        all
    }

    /// Keeps what the agent reports now, while it can prove something to an operator.
    fn remember(&mut self, world: &mut World) {
        if !self.reports_are_the_partys() {
            return;
        }
        let name = (world.past, world.agent, world.registry);
        if let Some(past) = self.pasts_after.get(&name) {
            world.past = *past;
            return;
        }
        let said = self.machine.said(world.agent);
        let mut past = self.pasts[world.past as usize].clone();
        if self.machine.is_connected(world.agent) && said.active.is_some() && !past.contains(&said) {
            past.push(said);
        }
        // A key that has gone from the registry never comes back.
        past.retain(|said| said.active_key().is_some_and(|key| world.registry.holds(key)));
        past.sort_by_cached_key(|said| format!("{said:?}"));
        world.past = self.past_no(past);
        self.pasts_after.insert(name, world.past);
    }

    fn steps_by_hand(&mut self, world: &World, steps: &mut Vec<Step>) {
        for slot in KeySlot::ALL {
            let stays = world.registry.of(slot.other());
            let is_active = self.machine.in_use(world.agent).all(|key| key == world.registry.of(slot));
            let has_other = self.machine.has_in_every_image(world.agent, |key| key == stays);
            let are_resting = world.operators == [Stage::Resting; 2];
            if are_resting && is_active && has_other && world.keys_made < 2 + self.story.keys_max {
                let mut world = World { was_done_by_hand: true, ..*world };
                world.make_key(slot);
                self.remember(&mut world);
                steps.push(Step { event: Event::ByHand(slot), world, harms: Vec::new() });
            }
        }
    }

    fn operator_steps(&mut self, world: &World, who: usize, steps: &mut Vec<Step>) {
        let no = u8::try_from(who).unwrap();
        let stage = world.operators[who];
        let mut push = |event, world: World, harms| steps.push(Step { event, world, harms });
        match stage {
            Stage::Resting => {
                let keys = [world.registry.primary, world.registry.secondary];
                for slot in KeySlot::ALL {
                    push(Event::Begins(no, slot), world.with(who, Stage::HasKeys { keys, slot }), Vec::new());
                }
            }
            Stage::HasKeys { keys, slot } => {
                for (said, tags, decision) in self.decisions(world, keys, slot) {
                    let world = World { tags, ..*world };
                    let event = Event::Decides(no, said, decision);
                    let wants_lease = match decision {
                        Decision::Renew(renewal) => self.story.keys_by_hub && renewal.makes.is_some(),
                        Decision::Refuse | Decision::Settle { .. } => false,
                    };
                    let next = match decision {
                        Decision::Renew(_) if wants_lease => Stage::WantsLease { slot },
                        Decision::Renew(_) if self.is_leased_by_other(&world, who) => Stage::Resting,
                        Decision::Refuse | Decision::Settle { .. } | Decision::Renew(_) => {
                            self.after_decision(&world, keys, slot, decision, false)
                        }
                    };
                    push(event, world.with(who, next), Vec::new());
                }
            }
            // The twin that the lease's answer brings shows that the identity has changed: then it is read again.
            Stage::WantsLease { slot } => {
                if self.is_leased_by_other(world, who) {
                    let event = Event::TakesLease(no, None, Decision::Refuse);
                    push(event, world.with(who, Stage::Resting), Vec::new());
                    return;
                }
                let keys = [world.registry.primary, world.registry.secondary];
                for (said, tags, decision) in self.decisions(world, keys, slot) {
                    let mut world = World { lease: Some(no), tags, ..*world };
                    if decision == Decision::Refuse {
                        world.lease = None;
                    }
                    let next = self.after_decision(&world, keys, slot, decision, true);
                    push(Event::TakesLease(no, said, decision), world.with(who, next), Vec::new());
                }
            }
            Stage::Changing { keys, slot, renewal, is_leased } => {
                let plan = self.renewals[usize::from(renewal)];
                let (now, before) = (world.registry, pair(keys));
                let vouching = before.of(plan.vouching);
                let Some(makes) = plan.makes else {
                    let next = Stage::Offering { keys, slot, renewal, vouching, is_leased };
                    push(Event::Changes(no), world.with(who, next), Vec::new());
                    return;
                };
                // Without a lease the identity's etag says whether the registry is as it was read.
                if !is_leased && now != before {
                    push(Event::Changes(no), world.with(who, Stage::Resting), Vec::new());
                    return;
                }
                if world.keys_made >= 2 + self.story.keys_max {
                    return;
                }
                let harms = self.harms_of_making(world, makes);
                let mut next = *world;
                next.make_key(makes);
                self.remember(&mut next);
                let is_as_planned = now.of(makes.other()) == before.of(makes.other());
                let keys = [next.registry.primary, next.registry.secondary];
                let stage = if is_as_planned {
                    Stage::Offering { keys, slot, renewal, vouching, is_leased }
                } else {
                    next.give_back_lease(who);
                    Stage::Resting
                };
                push(Event::Changes(no), next.with(who, stage), harms);
            }
            Stage::Offering { keys, slot, renewal, vouching, is_leased: _ } => {
                if world.offers_put() >= self.story.offers_max {
                    return;
                }
                let plan = self.renewals[usize::from(renewal)];
                let keys_of = pair(keys);
                let mut next = *world;
                let rotation = world.offers_put() + 1;
                next.offers[usize::from(rotation) - 1] = Some(Offer {
                    primary: plan.offers_primary.then_some(keys_of.primary),
                    secondary: plan.offers_secondary.then_some(keys_of.secondary),
                    seal: plan.seal,
                    auth: vouching,
                });
                next.standing = Some(rotation);
                if let Some((seal, sequence)) = plan.remembers {
                    next.tags = Tags::Believed { seal, sequence };
                }
                let learns = plan.seal == Seal::Party;
                let harms = if learns { vec![Harm::Learnt] } else { Vec::new() };
                let stage = Stage::Waiting { keys, slot, renewal, rotation };
                push(Event::Offers(no, rotation, plan.seal), next.with(who, stage), harms);
            }
            Stage::Waiting { keys, slot, renewal, rotation } => {
                let plan = self.renewals[usize::from(renewal)];
                for (said, answer) in self.answers(world, keys, slot, plan, rotation) {
                    let believed = |sequence: u8| (plan.seal.into(), sequence);
                    let stage = match answer {
                        Answer::Pending if world.standing == Some(rotation) => continue,
                        // Somebody else's offer stands there: this run ends.
                        Answer::Pending => Stage::Clearing { rotation: None, believed: None },
                        Answer::Rejected => Stage::Clearing { rotation: Some(rotation), believed: None },
                        Answer::Proved { sequence } => Stage::Clearing {
                            rotation: Some(rotation),
                            believed: (self.story.rules == Rules::Present).then(|| believed(sequence)),
                        },
                    };
                    push(Event::Hears(no, said, answer), world.with(who, stage), Vec::new());
                }
            }
            Stage::Clearing { rotation, believed } => {
                let mut next = *world;
                if rotation.is_some() && world.standing == rotation {
                    next.standing = None;
                }
                if let Some((seal, sequence)) = believed {
                    let seal = match seal {
                        Believed::Agent => Seal::Agent,
                        Believed::Party => Seal::Party,
                    };
                    next.tags = Tags::Believed { seal, sequence };
                }
                next.give_back_lease(who);
                push(Event::Clears(no), next.with(who, Stage::Resting), Vec::new());
            }
        }
        if stage != Stage::Resting && world.crashes < self.story.crashes_max {
            let crashed = World { crashes: world.crashes + 1, ..world.with(who, Stage::Resting) };
            steps.push(Step { event: Event::Crashes(no), world: crashed, harms: Vec::new() });
        }
    }

    /// Whether another run's lease stands. It ends by itself, but not before its holder has changed the registry and put its
    /// offer into the twin, or has given up.
    fn is_leased_by_other(&self, world: &World, who: usize) -> bool {
        let holder = world.lease.map(usize::from).filter(|holder| *holder != who);
        !self.story.may_break_lease && holder.is_some_and(|holder| is_under_lease(&world.operators[holder]))
    }

    fn after_decision(
        &mut self,
        world: &World,
        keys: [KeyNo; 2],
        slot: KeySlot,
        decision: Decision,
        is_leased: bool,
    ) -> Stage {
        match decision {
            Decision::Refuse => Stage::Resting,
            Decision::Settle { remembers } => Stage::Clearing {
                rotation: world.standing,
                believed: remembers.map(|(seal, sequence)| (seal.into(), sequence)),
            },
            Decision::Renew(renewal) => {
                Stage::Changing { keys, slot, renewal: self.renewal_no(renewal), is_leased }
            }
        }
    }

    /// What an operator may decide when it reads the twin now, with the tags that it finds there.
    fn decisions(
        &mut self,
        world: &World,
        keys: [KeyNo; 2],
        slot: KeySlot,
    ) -> Vec<(Option<Said>, Tags, Decision)> {
        let stands = |rotation| self.stands(world, rotation, pair(keys));
        let own = world.standing.and_then(stands);
        let facts = |tags, standing| Facts {
            keys: pair(keys),
            tags,
            standing,
            slot,
            is_incident: self.story.is_incident,
        };
        let facts_now = facts(world.tags, own);
        let mut found: Vec<(Option<Said>, Tags, Decision)> = Vec::new();
        let add = |said, tags, decision, found: &mut Vec<_>| {
            if found.iter().all(|(_, t, known)| (*t, *known) != (tags, decision)) {
                found.push((said, tags, decision));
            }
        };
        if self.reports_are_the_partys() {
            let past = self.pasts[world.past as usize].clone();
            for said in past {
                let decision = self.mind.decide(facts_now, said);
                add(Some(said), world.tags, decision, &mut found);
            }
            for (said, decision) in self.mind.forge_decisions(facts_now, self.can_prove(world)) {
                add(Some(said), world.tags, decision, &mut found);
            }
            return found;
        }
        let Some(said) = world.reported else {
            return vec![(None, world.tags, Decision::Refuse)];
        };
        if self.story.party == Party::Nobody {
            return vec![(None, world.tags, self.mind.decide(facts_now, said))];
        }
        let tags = self.tags_of_the_party(world);
        let mut standings: Vec<_> = (1..=world.offers_put()).map(stands).collect();
        standings.push(None);
        for (tags, standing) in tags.iter().flat_map(|tags| standings.iter().map(|s| (*tags, *s))) {
            let decision = self.mind.decide(facts(tags, standing), said);
            // What it put there may be taken back at once.
            add(None, world.tags, decision, &mut found);
        }
        found
    }

    /// What an operator sees of this offer where it stands: an authentic one.
    fn stands(&self, world: &World, rotation: RotationNo, keys: Pair) -> Option<Stands> {
        let offer = world.offers[usize::from(rotation) - 1]?;
        let (primary, secondary) = (offer.primary.is_some(), offer.secondary.is_some());
        let counts = match keys.slot_of(offer.auth) {
            _ if self.story.rules == Rules::Former => true,
            Some(KeySlot::Primary) => !(self.story.is_incident && primary),
            Some(KeySlot::Secondary) => !(self.story.is_incident && secondary),
            None => false,
        };
        counts.then_some(Stands { rotation, primary, secondary })
    }

    /// What a party that may write tags puts there.
    fn tags_of_the_party(&self, world: &World) -> Vec<Tags> {
        let mut all = vec![world.tags, Tags::Nothing, Tags::Unreadable];
        for seal in [Seal::Agent, Seal::Party] {
            all.extend([0, HIGH_SEQUENCE].map(|sequence| Tags::Believed { seal, sequence }));
        }
        all
    }

    fn answers(
        &mut self,
        world: &World,
        keys: [KeyNo; 2],
        slot: KeySlot,
        plan: Renewal,
        rotation: RotationNo,
    ) -> Vec<(Option<Said>, Answer)> {
        let awaited = Awaited {
            keys: pair(keys),
            slot,
            offers_primary: plan.offers_primary,
            offers_secondary: plan.offers_secondary,
            seal: plan.seal,
            rotation,
        };
        if !self.reports_are_the_partys() {
            let answer = world.reported.map_or(Answer::Pending, |said| self.mind.answer(awaited, said));
            return vec![(None, answer)];
        }
        let mut found: Vec<(Option<Said>, Answer)> = Vec::new();
        for said in self.pasts[world.past as usize].clone() {
            let answer = self.mind.answer(awaited, said);
            if found.iter().all(|(_, known)| *known != answer) {
                found.push((Some(said), answer));
            }
        }
        for (said, answer) in self.mind.forge_answers(awaited, world.tags, self.can_prove(world)) {
            if found.iter().all(|(_, known)| *known != answer) {
                found.push((Some(said), answer));
            }
        }
        found
    }

    /// The proofs that the party can make or copy to other reports.
    fn can_prove(&self, world: &World) -> CanProve {
        let mut can_prove = CanProve::NOTHING;
        for key in self.partys_keys(world) {
            can_prove.add_key(key);
        }
        if self.story.rules == Rules::Former {
            for said in &self.pasts[world.past as usize] {
                if let (Proof::By(key), Some(rotation)) = (said.proof, said.rotation) {
                    can_prove.add(key, Some(rotation));
                }
            }
        }
        can_prove
    }

    /// The registry's keys that the party knows.
    fn partys_keys(&self, world: &World) -> Vec<KeyNo> {
        let mut known = match self.story.party {
            Party::Key(key) => vec![key],
            Party::Nobody | Party::Token | Party::Twins => Vec::new(),
        };
        let opened = world.offers.iter().flatten().filter(|offer| offer.seal == Seal::Party);
        known.extend(opened.flat_map(|offer| [offer.primary, offer.secondary]).flatten());
        known.retain(|key| world.registry.holds(*key));
        known
    }

    fn harms_of_making(&self, world: &World, slot: KeySlot) -> Vec<Harm> {
        let replaced = world.registry.of(slot);
        if self.machine.in_use(world.agent).all(|key| key != replaced) {
            return Vec::new();
        }
        let stays = world.registry.of(slot.other());
        let has_cause = self.partys_keys(world).contains(&stays)
            && self.machine.has_in_every_image(world.agent, |key| key == stays);
        let mut harms = vec![Harm::KeyInUse];
        if !has_cause {
            harms.push(Harm::KeyInUseWithoutCause);
        }
        harms
    }
}

impl World {
    /// Keys made and offers put.
    pub(super) fn reach(&self) -> (u8, u8) {
        (self.keys_made - 2, self.offers_put())
    }

    fn offers_put(&self) -> u8 {
        u8::try_from(self.offers.iter().flatten().count()).unwrap()
    }

    fn with(&self, who: usize, stage: Stage) -> Self {
        let mut operators = self.operators;
        operators[who] = stage;
        Self { operators, ..*self }
    }

    fn make_key(&mut self, slot: KeySlot) {
        self.keys_made += 1;
        self.registry = self.registry.with(slot, self.keys_made);
    }

    fn give_back_lease(&mut self, who: usize) {
        self.lease = self.lease.filter(|holder| usize::from(*holder) != who);
    }

    /// The operators have no names: two worlds in which they have changed places are one. A lease whose holder orders nothing
    /// under it is in nobody's way.
    fn operators_in_order(&mut self, operators: usize) {
        self.lease = self.lease.filter(|holder| is_under_lease(&self.operators[usize::from(*holder)]));
        if operators == 2 && self.operators[0] > self.operators[1] {
            self.operators.swap(0, 1);
            self.lease = self.lease.map(|holder| 1 - holder);
        }
    }
}

fn is_under_lease(stage: &Stage) -> bool {
    matches!(stage, Stage::Changing { is_leased: true, .. } | Stage::Offering { is_leased: true, .. })
}

impl From<Seal> for Believed {
    fn from(seal: Seal) -> Self {
        match seal {
            Seal::Agent => Self::Agent,
            Seal::Party => Self::Party,
        }
    }
}

fn pair(keys: [KeyNo; 2]) -> Pair {
    Pair { primary: keys[0], secondary: keys[1] }
}
