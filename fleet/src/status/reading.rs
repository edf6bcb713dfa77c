//! What the hub is asked, in few calls: twins by pages, keys by the thousand, and one by one only where somebody wants that.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use twinkey_contract::Identity;

use super::Row;
use super::marks::Mark;
use super::observed::{Observed, Registry, Reported};
use crate::cli::{RegistryReading, StatusArgs};
use crate::failure::Failure;
use crate::hub::{Collection, Columns, Hub, HubError, Query};
use crate::identities::REGISTRY_LIST_MAX;
use crate::output;

/// Stands for all, as in other commands.
const ALL: &str = "*";
/// Up to so many single reads are made unasked; they take a minute at most of the smallest hub's quota.
const SINGLE_READS_UNASKED_MAX: usize = 100;
/// Reads of the registry that a hub takes in a minute for each unit of tier S1 or S2 (quotas, 2019).
const READS_PER_MINUTE: usize = 100;
/// Up to so many devices are read one by one rather than with a thousand others.
const FEW_DEVICES: usize = 20;
/// Between two pictures of the progress bar.
const TICK: Duration = Duration::from_millis(200);

/// The calls of one run.
pub(crate) struct Reading<'a> {
    hub: &'a Hub,
    args: &'a StatusArgs,
    progress: ProgressBar,
    /// Why not all keys were read that were to be.
    obstacle: RefCell<Option<HubError>>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(hub: &'a Hub, args: &'a StatusArgs) -> Self {
        // It draws on stderr, and only on a terminal.
        let progress = if args.no_progress { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}: {pos} [{elapsed}]") {
            progress.set_style(style);
        }
        Self { hub, args, progress, obstacle: RefCell::new(None) }
    }

    /// All twins that were asked for.
    pub(crate) async fn twins(&self) -> Result<Vec<Observed>, Failure> {
        self.progress.enable_steady_tick(TICK);
        self.progress.set_message("twins");
        let collections: &[Collection] = if self.args.modules {
            &[Collection::Devices, Collection::Modules]
        } else {
            &[Collection::Devices]
        };
        let condition = self.args.target.as_deref().filter(|condition| condition.trim() != ALL);
        let (mut identities, mut unreadable) = (Vec::new(), 0_usize);
        for collection in collections {
            let mut reading = self.hub.reading(Query::new(*collection, Columns::Renewal, condition));
            while let Some(part) = reading.next().await.map_err(|error| self.query_failure(error))? {
                let read = part.twins.into_iter().map(Observed::of_row);
                let too_long = part.too_long.into_iter().map(Observed::of_row_too_long);
                for observed in read.chain(too_long) {
                    match observed {
                        Some(observed) => identities.push(observed),
                        None => unreadable += 1,
                    }
                }
                self.progress.set_position(identities.len() as u64);
            }
        }
        self.progress.disable_steady_tick();
        self.progress.finish_and_clear();
        if let Some(condition) = self.args.target.as_ref().filter(|_| identities.is_empty()) {
            return Err(Failure::usage(format!("no device fits --target {condition}")).next(
                "check the condition (tags are tags.NAME, texts stand in single quotes), and that the hub is the right one",
            ));
        }
        let too_long = identities.iter().filter(|one| matches!(one.reported, Reported::TooLong)).count();
        if too_long > 0 {
            output::warn(&format!(
                "{too_long} of {} twins are longer than what is read; they have the mark {}",
                identities.len(),
                Mark::TwinTooLong.code()
            ));
        }
        if unreadable > 0 {
            output::warn(&format!("{unreadable} rows of the hub's answer were no twins, and are left out"));
        }
        Ok(identities)
    }

    /// Puts the registry's keys beside what was reported, as far as that was asked for or costs little.
    pub(crate) async fn registry(&self, identities: &mut [Observed]) {
        let is_asked_for = match self.args.registry {
            RegistryReading::Never => return,
            RegistryReading::Auto => false,
            RegistryReading::Each => true,
        };
        if identities.is_empty() {
            return;
        }
        // What is known by then is worth showing: reading may have taken an hour, and twins tell much by themselves.
        if let Err(error) = self.read_registry(identities, is_asked_for).await {
            *self.obstacle.borrow_mut() = Some(error);
        }
        self.progress.disable_steady_tick();
        self.progress.finish_and_clear();
    }

    /// Whether all was read that was to be.
    pub(crate) fn is_complete(&self) -> bool {
        self.obstacle.borrow().is_none()
    }

    async fn read_registry(&self, identities: &mut [Observed], is_asked_for: bool) -> Result<(), HubError> {
        let devices = identities.iter().filter(|one| one.identity.module_id.is_none()).count();
        let mut found = HashMap::new();
        if devices > FEW_DEVICES {
            let listed = self.hub.devices(REGISTRY_LIST_MAX).await?;
            found.extend(listed.iter().map(|device| (device.device_id.clone(), Registry::of(device))));
        }
        for observed in identities.iter_mut().filter(|one| one.identity.module_id.is_none()) {
            if let Some(registry) = found.remove(&observed.identity.device_id) {
                observed.registry = registry;
            }
        }
        let with_modules: BTreeSet<String> = identities
            .iter()
            .filter(|one| one.identity.module_id.is_some())
            .map(|one| one.identity.device_id.clone())
            .collect();
        let is_open =
            |one: &Observed| one.identity.module_id.is_none() && matches!(one.registry, Registry::NotRead);
        let calls = identities.iter().filter(|one| is_open(one)).count() + with_modules.len();
        if calls > SINGLE_READS_UNASKED_MAX {
            if !is_asked_for {
                return Ok(());
            }
            output::note(&format!(
                "reading {calls} identities one by one: about {} minutes with one unit of tier S1 or S2",
                calls.div_ceil(READS_PER_MINUTE)
            ));
        }
        self.progress.reset();
        self.progress.enable_steady_tick(TICK);
        self.progress.set_message("registry");
        for observed in identities.iter_mut().filter(|one| is_open(one)) {
            match self.hub.device(&observed.identity).await {
                Ok(device) => observed.registry = Registry::of(&device),
                // Deleted since the query.
                Err(error) if error.status() == Some(404) => {}
                Err(error) => return Err(error),
            }
            self.progress.inc(1);
        }
        let mut modules: HashMap<Identity, Registry> = HashMap::new();
        for device_id in with_modules {
            match self.hub.modules(&device_id).await {
                Ok(listed) => {
                    modules.extend(listed.iter().map(|module| (module.identity(), Registry::of(module))));
                }
                Err(error) if error.status() == Some(404) => {}
                Err(error) => return Err(error),
            }
            self.progress.inc(1);
        }
        for observed in identities.iter_mut() {
            if let Some(registry) = modules.remove(&observed.identity) {
                observed.registry = registry;
            }
        }
        Ok(())
    }

    /// Reads again, directly, what looks as if registry and report disagreed: queries answer from an index that is some
    /// time behind, and a renewal may have gone on between the calls.
    pub(crate) async fn look_again(&self, rows: &mut [Row], judge: &impl Fn(Observed) -> Row) {
        let disagreement = [Mark::KeyUnknown, Mark::SlotMismatch, Mark::ProofFails];
        let doubtful = rows.iter_mut().filter(|row| row.marks.iter().any(|mark| disagreement.contains(mark)));
        for row in doubtful.take(SINGLE_READS_UNASKED_MAX) {
            match self.read_one(&row.observed).await {
                Ok(observed) => *row = judge(observed),
                // What is not ours in it is too much: what the query found is all there is.
                Err(HubError::TooLong { .. }) => {}
                // Deleted since the query.
                Err(error) if error.status() == Some(404) => {}
                Err(error) => {
                    output::warn(&format!(
                        "marks about keys rest on the hub's index alone, which may be behind: {error}"
                    ));
                    return;
                }
            }
        }
    }

    /// The twin first: nobody renews the key that it says is in use, so that key is in the registry a moment later.
    async fn read_one(&self, seen: &Observed) -> Result<Observed, HubError> {
        let twin = self.hub.twin(&seen.identity).await?;
        let device = self.hub.device(&seen.identity).await?;
        let mut observed = Observed::of_twin(&twin, seen.authentication.clone());
        observed.registry = Registry::of(&device);
        Ok(observed)
    }

    /// Tells on stderr whose keys were not compared, and what to do about it.
    pub(crate) fn say_what_was_left_out(&self, rows: &[Row]) {
        if self.args.registry == RegistryReading::Never {
            return;
        }
        let is_open = |row: &&Row| matches!(row.observed.registry, Registry::NotRead);
        let open = rows.iter().filter(is_open).count();
        if open == 0 {
            return;
        }
        let all = rows.len();
        match self.obstacle.take() {
            Some(error) => {
                let failure = Failure::from(error);
                output::warn(&format!("{open} of {all} not compared with the registry: {}", failure.what));
                if let Some(next) = failure.next {
                    output::note(&format!("  next: {next}"));
                }
            }
            None => output::note(&format!(
                "{open} of {all} not compared with the registry: --registry reads them one by one, in about {} minutes with \
                 one unit of tier S1 or S2",
                open.div_ceil(READS_PER_MINUTE)
            )),
        }
    }

    fn query_failure(&self, error: HubError) -> Failure {
        match &self.args.target {
            Some(condition) if error.status() == Some(400) => Failure::usage(format!(
                "--target {condition}: {error}"
            ))
            .next("write a condition as after WHERE in the hub's query language: \"tags.site = 'north'\""),
            Some(_) | None => error.into(),
        }
    }
}
