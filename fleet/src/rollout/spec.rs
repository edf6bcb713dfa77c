//! What a rollout is to do: a TOML file, and flags that override it.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::span;
use super::waves::WaveSize;
use super::window::Window;
use crate::cli::KeySource;
use crate::failure::Failure;
use crate::hub::{Limits, Tier};

/// Stands for all devices of the hub.
pub(crate) const ALL: &str = "*";
/// Most devices that are renewed at the same time.
const PARALLELISM_MAX: u32 = 1000;
/// Most further attempts at a slot.
const RETRIES_MAX: u32 = 100;
/// Most units of a hub (IoT Hub documentation, "Choose the right tier").
const UNITS_MAX: u32 = 200;

/// A rollout as it was ordered. The ledger keeps it as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// A condition of the hub's query language, or [`ALL`], which must be said.
    #[serde(default)]
    pub(crate) target: String,
    /// Whether the modules of the devices are renewed, too.
    #[serde(default)]
    pub(crate) include_modules: bool,
    /// Whether each device has to answer a challenge before its keys change.
    #[serde(default = "yes")]
    pub(crate) challenge: bool,
    #[serde(default)]
    pub(crate) keys: Keys,
    #[serde(default)]
    pub(crate) key_source: Source,
    /// How many of the target have had their turn after each wave.
    #[serde(default = "usual_waves")]
    pub(crate) waves: Vec<WaveSize>,
    /// Slots that are renewed at the same time.
    #[serde(default = "usual_parallelism")]
    pub(crate) parallelism: u32,
    /// How long a device may take to prove a new key. The offer stands after that, and the key stays valid.
    #[serde(default = "usual_deadline", with = "span")]
    pub(crate) deadline: Duration,
    /// How long a device has to live on its first new key before its other one is renewed.
    #[serde(default, with = "span")]
    pub(crate) soak: Duration,
    /// Further attempts at a slot.
    #[serde(default = "usual_retries")]
    pub(crate) retries: u32,
    #[serde(default)]
    pub(crate) failures: Failures,
    #[serde(default, rename = "window")]
    pub(crate) windows: Vec<Window>,
    #[serde(default)]
    pub(crate) hub: HubSize,
}

/// Which keys of a device are renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Keys {
    /// First the one that the device does not use, then the other.
    #[default]
    Both,
    /// The one that the device does not use.
    Idle,
}

/// Who makes new keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    #[default]
    Service,
    Local,
}

/// When to stop beginning more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failures {
    /// More failed devices than this.
    #[serde(default)]
    pub(crate) max: Option<u32>,
    /// More failed devices than this, in per cent of those that have ended.
    #[serde(default)]
    pub(crate) max_percent: Option<f64>,
    /// Not before so many have ended.
    #[serde(default = "one")]
    pub(crate) minimum_executed: u32,
}

impl Default for Failures {
    fn default() -> Self {
        Self { max: None, max_percent: None, minimum_executed: one() }
    }
}

/// The hub's tier, which sets its limits. Without it, they are found out when the hub says 429, and estimates are for the
/// smallest hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HubSize {
    #[serde(default)]
    pub(crate) tier: Option<Tier>,
    #[serde(default = "one")]
    pub(crate) units: u32,
}

impl Default for HubSize {
    fn default() -> Self {
        Self { tier: None, units: one() }
    }
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn usual_waves() -> Vec<WaveSize> {
    vec![WaveSize::Count(1), WaveSize::percent(1), WaveSize::percent(10), WaveSize::percent(100)]
}

fn usual_parallelism() -> u32 {
    50
}

fn usual_deadline() -> Duration {
    Duration::from_secs(15 * 60)
}

fn usual_retries() -> u32 {
    2
}

impl Spec {
    /// A spec that says nothing: all that may be left out is as usual.
    pub(crate) fn usual() -> Result<Self, Failure> {
        Self::parse("", "the empty spec")
    }

    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::usage(format!("read the spec {}: {e}", path.display())))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// `name` is where it comes from.
    pub(crate) fn parse(text: &str, name: &str) -> Result<Self, Failure> {
        toml::from_str(text).map_err(|e| {
            Failure::usage(format!("{name}: {}", said(&e, text)))
                .next("every field is explained in docs/rollout.md; docs/examples/rollout.toml has them all")
        })
    }

    /// Whether it can be carried out, whatever the target turns out to be.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let wrong = |text: String| Err(Failure::usage(format!("the spec: {text}")));
        if self.target.trim().is_empty() {
            return Err(Failure::usage("the spec names no target").next(
                "say which devices, for instance target = \"tags.site = 'A'\" or --target \"tags.site = 'A'\"; \"*\" stands \
                 for all devices of the hub",
            ));
        }
        super::waves::check(&self.waves).or_else(wrong)?;
        if self.parallelism == 0 || self.parallelism > PARALLELISM_MAX {
            return wrong(format!("parallelism is {}, and must be 1 to {PARALLELISM_MAX}", self.parallelism));
        }
        if self.deadline.is_zero() {
            return wrong("deadline is 0s: no device could answer in time".to_owned());
        }
        if self.retries > RETRIES_MAX {
            return wrong(format!("retries is {}, and may be up to {RETRIES_MAX}", self.retries));
        }
        if let Some(percent) = self.failures.max_percent
            && !(0.0..=100.0).contains(&percent)
        {
            return wrong(format!("failures.max_percent is {percent}, and must be 0 to 100"));
        }
        if self.hub.units == 0 || self.hub.units > UNITS_MAX {
            return wrong(format!("hub.units is {}, and must be 1 to {UNITS_MAX}", self.hub.units));
        }
        if self.keys == Keys::Idle && !self.soak.is_zero() {
            return wrong("soak is for keys = \"both\": with \"idle\" there is no second key".to_owned());
        }
        self.windows.iter().try_for_each(Window::check).or_else(wrong)
    }

    /// Slots that are renewed in each device.
    pub(crate) fn slots_per_device(&self) -> u32 {
        match self.keys {
            Keys::Both => 2,
            Keys::Idle => 1,
        }
    }
}

impl From<Source> for KeySource {
    fn from(source: Source) -> Self {
        match source {
            Source::Service => Self::Service,
            Source::Local => Self::Local,
        }
    }
}

impl From<KeySource> for Source {
    fn from(source: KeySource) -> Self {
        match source {
            KeySource::Service => Self::Service,
            KeySource::Local => Self::Local,
        }
    }
}

impl HubSize {
    /// What estimates are for.
    pub(crate) fn estimated_tier(self) -> Tier {
        self.tier.unwrap_or(Tier::S1)
    }

    /// What the hub may be asked.
    pub(crate) fn limits(self) -> Limits {
        self.tier.map_or(Limits::unlimited(), |tier| Limits::tier(tier, self.units))
    }
}

/// Where, then what, in one line.
fn said(error: &toml::de::Error, text: &str) -> String {
    let what = error.message().replace('\n', ", ");
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return what };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    format!("line {line}, column {column}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Spec, Failure> {
        let spec = Spec::parse(text, "site-a.toml")?;
        spec.check().map(|()| spec)
    }

    fn complaint(text: &str) -> String {
        parse(text).unwrap_err().what
    }

    #[test]
    fn what_is_left_out_is_as_usual() {
        let spec = parse("target = '*'").unwrap();
        assert_eq!((spec.keys, spec.key_source, spec.parallelism), (Keys::Both, Source::Service, 50));
        assert_eq!((spec.deadline.as_secs(), spec.soak.as_secs(), spec.retries), (900, 0, 2));
        assert_eq!(spec.waves, usual_waves());
        assert_eq!((spec.hub.tier, spec.hub.units, spec.windows.len()), (None, 1, 0));
    }

    #[test]
    fn the_example_of_the_documentation_is_good() {
        let text = include_str!("../../../docs/examples/rollout.toml");
        let spec = parse(text).unwrap();
        assert_eq!(spec.windows.len(), 2);
        assert!(spec.failures.max_percent.is_some() && spec.failures.max.is_some());
    }

    #[test]
    fn the_ledger_gives_back_what_was_ordered() {
        let spec = parse(include_str!("../../../docs/examples/rollout.toml")).unwrap();
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let unknown = complaint("target = '*'\nwave = ['1']\n");
        assert!(
            unknown.starts_with("site-a.toml: line 2, column 1: ") && unknown.contains("wave"),
            "{unknown}"
        );
        let odd = complaint("target = '*'\nsoak = 'long'\n");
        assert!(odd.starts_with("site-a.toml: line 2, column 8: ") && odd.contains("90s"), "{odd}");
        let odd = complaint("target = '*'\nwaves = ['1', 'many']\n");
        assert!(odd.contains("line 2") && odd.contains("many"), "{odd}");
        let odd = complaint("target = '*'\n[failures]\nmaximum = 1\n");
        assert!(odd.contains("line 3") && odd.contains("maximum"), "{odd}");
        assert!(complaint("target = ").contains("line 1"));
    }

    #[test]
    fn all_devices_are_meant_only_where_that_is_said() {
        for text in ["", "target = ''", "target = ' '"] {
            let failure = parse(text).unwrap_err();
            assert!(failure.what.contains("no target"), "{}", failure.what);
            assert!(failure.next.unwrap().contains("\"*\" stands for all"));
        }
    }

    #[test]
    fn what_could_not_be_carried_out_is_refused() {
        for (line, word) in [
            ("parallelism = 0", "parallelism"),
            ("parallelism = 100000", "parallelism"),
            ("deadline = '0s'", "deadline"),
            ("retries = 1000", "retries"),
            ("waves = ['1', '50%']", "100%"),
            ("waves = []", "waves"),
            ("keys = 'idle'\nsoak = '1h'", "soak"),
            ("failures = { max_percent = 101.0 }", "max_percent"),
            ("hub = { units = 0 }", "units"),
        ] {
            let said = complaint(&format!("target = '*'\n{line}\n"));
            assert!(said.contains(word), "{line}: {said}");
        }
    }
}
