//! One light device: connects with the key that it lives on, takes offers from its twin, proves new keys by takeover,
//! and reports. It falls back to its other keys when one is refused, and goes on for ever.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use twinkey_contract::RotationId;
use twinkey_contract::sealing::{SealingKey, SealingPublicKey};
use twinkey_sas::Key;

use super::line::{Broken, Exchange, Line, NoLine};
use super::manners::{BreakPoint, Manner, absence, lateness};
use super::ring::Ring;
use super::unix_now;
use crate::chance::Chance;

/// First pause after a key was refused or the hub not reached; doubled up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Refusals after which an offered key is rejected. With their pauses they take six seconds: a propagation window of a
/// test's length.
const REFUSALS_MAX: u32 = 7;

/// What all devices of a fleet share.
pub(super) struct Common {
    pub(super) exchange: Exchange,
    pub(super) sealing: SealingKey,
    /// Its public half, which takes a while to work out.
    pub(super) seal_to: SealingPublicKey,
    pub(super) tally: Tally,
}

/// What the fleet has done so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) reported: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) takeovers: AtomicU64,
    pub(super) fallbacks: AtomicU64,
    pub(super) disturbances: AtomicU64,
}

/// What devices are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    pub(super) behave: bool,
    pub(super) stop: bool,
}

pub(super) struct Device {
    pub(super) common: Arc<Common>,
    pub(super) ring: Ring,
    pub(super) manner: Manner,
    pub(super) chance: Chance,
    pub(super) orders: watch::Receiver<Orders>,
    /// The sequence of the ring that was reported last.
    pub(super) reported: Option<u64>,
    /// The rotation in which it has misbehaved already.
    pub(super) disturbed: Option<RotationId>,
}

/// Why a session is over.
enum Parted {
    /// The connection broke.
    Broken,
    /// The device breaks it, and stays away for this long.
    Away(Duration),
}

impl From<Broken> for Parted {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

impl Device {
    /// Lives until it is told to stop; what is left is its ring.
    pub(super) async fn live(mut self) -> Ring {
        let mut orders = self.orders.clone();
        tokio::select! {
            _ = orders.wait_for(|orders| orders.stop) => {}
            never = self.go_on() => match never {},
        }
        self.ring
    }

    async fn go_on(&mut self) -> Infallible {
        let mut pause = PAUSE_MIN;
        loop {
            if let Some(line) = self.connect().await {
                pause = PAUSE_MIN;
                let Err(parted) = self.session(line).await;
                if let Parted::Away(time) = parted {
                    sleep(time).await;
                }
            }
            // Half of it is left to chance, or a thousand devices would come back at one moment.
            sleep(pause / 2 + self.chance.moment(pause / 2)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Tries every key once, the active one first.
    async fn connect(&mut self) -> Option<Line> {
        for key in self.ring.keys() {
            match self.open(&key).await {
                Ok(line) => {
                    if self.ring.active_key() != Some(&key) {
                        self.count(|tally| &tally.fallbacks);
                    }
                    self.ring.accepted(&key, unix_now());
                    return Some(line);
                }
                Err(NoLine::Refused) => {}
                // The other keys would fare no better.
                Err(NoLine::Unreached) => return None,
            }
        }
        None
    }

    async fn open(&self, key: &Key) -> Result<Line, NoLine> {
        let opened = Line::open(&self.common.exchange, self.ring.identity(), key).await;
        match &opened {
            Ok(_) => self.count(|tally| &tally.connects),
            Err(NoLine::Refused) => self.count(|tally| &tally.refusals),
            Err(NoLine::Unreached) => {}
        }
        opened
    }

    async fn session(&mut self, mut line: Line) -> Result<Infallible, Parted> {
        loop {
            line.subscribe().await?;
            // As long as the same connection stands.
            line = loop {
                let twin = line.twin().await?;
                let break_point = match self.ring.is_news(&twin) {
                    Some(rotation) => self.misbehave(rotation, &twin).await?,
                    None => None,
                };
                self.ring.take_up(&twin, &self.common.sealing);
                if let Some(next) = self.try_keys(&mut line, break_point).await? {
                    break next;
                }
                self.report(&mut line).await?;
                line.until_hinted().await?;
            };
        }
    }

    /// Does what its manner says, once for each rotation.
    async fn misbehave(&mut self, rotation: RotationId, twin: &[u8]) -> Result<Option<BreakPoint>, Parted> {
        if self.orders.borrow().behave || self.disturbed == Some(rotation) || self.manner == Manner::Good {
            return Ok(None);
        }
        let is_first = self.disturbed.replace(rotation).is_none();
        self.count(|tally| &tally.disturbances);
        match self.manner {
            Manner::Good => {}
            Manner::Silent => {
                // The sender lives as long as the fleet.
                let _ = self.orders.wait_for(|orders| orders.behave || orders.stop).await;
                // By now the twin may offer something else.
                return Err(Parted::Away(Duration::ZERO));
            }
            Manner::Late => sleep(lateness(&mut self.chance)).await,
            Manner::Away => return Err(Parted::Away(absence(&mut self.chance))),
            Manner::Refusing if is_first => {
                self.ring.take_up(twin, &self.common.sealing);
                self.ring.reject();
            }
            Manner::Refusing => {}
            Manner::BreakingOff => return Ok(Some(BreakPoint::draw(&mut self.chance))),
        }
        Ok(None)
    }

    /// Tries what is offered beside the connection that stands. The new connection, if a key was accepted on it: the
    /// hub has closed the old one by then.
    async fn try_keys(
        &mut self,
        line: &mut Line,
        break_point: Option<BreakPoint>,
    ) -> Result<Option<Line>, Parted> {
        let (mut refusals, mut pause) = (0, PAUSE_MIN);
        while let Some(key) = self.ring.on_trial() {
            if refusals == 0 {
                self.report(line).await?;
            }
            if break_point == Some(BreakPoint::Trial) {
                return Err(Parted::Away(Duration::ZERO));
            }
            match self.open(&key).await {
                Ok(_) if break_point == Some(BreakPoint::Keeping) => {
                    return Err(Parted::Away(Duration::ZERO));
                }
                Ok(taken_over) => {
                    self.ring.accepted(&key, unix_now());
                    self.count(|tally| &tally.takeovers);
                    if break_point == Some(BreakPoint::Report) {
                        return Err(Parted::Away(Duration::ZERO));
                    }
                    return Ok(Some(taken_over));
                }
                Err(NoLine::Refused) => {
                    refusals += 1;
                    if refusals >= REFUSALS_MAX {
                        return self.condemn(&key).await;
                    }
                }
                // Nothing that is held against the key.
                Err(NoLine::Unreached) => {}
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Ok(None)
    }

    /// The offered key was refused over the whole window. Only if the key in use is accepted now, and the offered one is
    /// refused once more after that, is it rejected.
    async fn condemn(&mut self, offered: &Key) -> Result<Option<Line>, Parted> {
        let Some(active) = self.ring.active_key().cloned() else { return Err(Parted::Broken) };
        let Ok(control) = self.open(&active).await else { return Err(Parted::Broken) };
        match self.open(offered).await {
            Ok(taken_over) => {
                self.ring.accepted(offered, unix_now());
                self.count(|tally| &tally.takeovers);
                Ok(Some(taken_over))
            }
            Err(NoLine::Refused) => {
                self.ring.reject();
                Ok(Some(control))
            }
            Err(NoLine::Unreached) => Ok(Some(control)),
        }
    }

    /// Reports what has changed since the last report.
    async fn report(&mut self, line: &mut Line) -> Result<(), Broken> {
        let sequence = self.ring.sequence();
        if self.reported == Some(sequence) {
            return Ok(());
        }
        line.report(&self.ring.report(self.common.seal_to).to_patch()).await?;
        if self.reported.replace(sequence).is_none() {
            self.count(|tally| &tally.reported);
        }
        Ok(())
    }

    fn count(&self, which: impl FnOnce(&Tally) -> &AtomicU64) {
        which(&self.common.tally).fetch_add(1, Ordering::Relaxed);
    }
}
