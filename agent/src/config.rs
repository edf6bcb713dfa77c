//! `/etc/twinkey/agent.toml`.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use twinkey_rotation::Policy;

use crate::regular_file::{self, Links};

/// Longest configuration file, in bytes: the commented example takes 2 KiB.
const FILE_LEN_MAX: u64 = 256 * 1024;
/// Shortest token lifetime, in seconds: below it, renewals would follow each other like a storm.
const TOKEN_LIFETIME_SECS_MIN: u64 = 10;
/// Longest token lifetime, in seconds: a year. A stolen token works as long as this.
const TOKEN_LIFETIME_SECS_MAX: u64 = 366 * 24 * 3600;
/// Longest propagation window, in seconds: a day.
const PROPAGATION_WINDOW_SECS_MAX: u64 = 24 * 3600;

/// The agent's configuration. Every part has a default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How to reach the hub.
    pub hub: Hub,
    /// Where the key ring is.
    pub state: State,
    /// How programs on this machine reach the agent.
    pub local: Local,
    /// How keys are renewed.
    pub rotation: Rotation,
    /// How tokens are made.
    pub token: Token,
}

/// Section `[hub]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hub {
    /// Read once, to create the key ring.
    pub connection_string_file: Option<PathBuf>,
    /// Certificates to trust, in PEM form.
    pub ca_file: Option<PathBuf>,
    /// Whether to trust the system's roots as well.
    pub system_roots: bool,
    /// TCP port for MQTT over TLS.
    pub port: u16,
    /// TCP port of the hub's HTTPS end, which is asked for the time when every key is refused.
    pub https_port: u16,
    /// MQTT keep-alive in seconds, at most 1,177 (the hub's limit).
    pub keep_alive_secs: u16,
    /// How another key is tried.
    pub takeover: Takeover,
}

/// How another key, or another token, is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Takeover {
    /// On a second connection, while the first one carries traffic.
    MakeBeforeBreak,
    /// On the only connection, after closing it: for hubs or gateways that bear no second one.
    BreakBeforeMake,
}

/// Section `[state]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// The directory, 0700.
    pub dir: PathBuf,
}

/// Section `[local]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Local {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Whether programs may ask for tokens.
    pub tokens: bool,
}

/// Section `[rotation]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// How long a refused candidate is tried before it is rejected, in seconds.
    pub propagation_window_secs: u64,
    /// Whether keys in plain form are taken from the twin.
    pub allow_unsealed: bool,
    /// Whether offers without authentication are taken from the twin.
    pub allow_unauthenticated: bool,
}

/// Section `[token]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Token {
    /// How long a token is good for, in seconds; it is renewed at 80 % of that.
    pub lifetime_secs: u64,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            connection_string_file: None,
            ca_file: None,
            system_roots: true,
            port: 8883,
            https_port: 443,
            keep_alive_secs: 240,
            takeover: Takeover::MakeBeforeBreak,
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { dir: "/var/lib/twinkey".into() }
    }
}

impl Default for Local {
    fn default() -> Self {
        Self { socket: "/run/twinkey/agent.sock".into(), tokens: false }
    }
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            propagation_window_secs: Policy::DEFAULT.propagation_window_ms / 1_000,
            allow_unsealed: false,
            allow_unauthenticated: false,
        }
    }
}

impl Default for Token {
    fn default() -> Self {
        Self { lifetime_secs: 3_600 }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?)
            .map_err(|problem| ConfigError::Invalid { path: path.to_owned(), problem })
    }

    /// Reads and checks the file of a running agent. An empty one is refused: it is more likely half written than meant.
    pub fn read_again(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        let checked = match text.trim() {
            "" => Err("it is empty; write at least the name of a section, as in `[hub]`".to_owned()),
            _ => Self::parse(&text),
        };
        checked.map_err(|problem| ConfigError::Invalid { path: path.to_owned(), problem })
    }

    /// Checks a text; the error says which line and what to do.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| problem_of(&error, text))?;
        let in_range = |name: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} is {value}; it must be between {min} and {max}"))
            }
        };
        in_range(
            "[token] lifetime_secs",
            config.token.lifetime_secs,
            TOKEN_LIFETIME_SECS_MIN,
            TOKEN_LIFETIME_SECS_MAX,
        )?;
        in_range(
            "[rotation] propagation_window_secs",
            config.rotation.propagation_window_secs,
            0,
            PROPAGATION_WINDOW_SECS_MAX,
        )?;
        in_range("[hub] keep_alive_secs", config.hub.keep_alive_secs.into(), 10, 1_177)?;
        in_range("[hub] port", config.hub.port.into(), 1, 65_535)?;
        in_range("[hub] https_port", config.hub.https_port.into(), 1, 65_535)?;
        Ok(config)
    }

    /// The pace of the machine that follows from the configuration.
    pub fn policy(&self) -> Policy {
        let window_ms = self.rotation.propagation_window_secs * 1_000;
        // A short window still sees a few attempts; however short it is, they get rarer like all others.
        let trial_delay_ms_min = (window_ms / 8).clamp(200, Policy::DEFAULT.trial_delay_ms_min);
        Policy {
            propagation_window_ms: window_ms,
            trial_delay_ms_min,
            renew_after_ms: self.token.lifetime_secs * 800,
            is_single_connection: self.hub.takeover == Takeover::BreakBeforeMake,
            ..Policy::DEFAULT
        }
    }

    /// The bounds of a connection's stages that follow from the configuration.
    pub fn timing(&self) -> crate::hub::Timing {
        crate::hub::Timing {
            keep_alive: Duration::from_secs(self.hub.keep_alive_secs.into()),
            ..crate::hub::Timing::DEFAULT
        }
    }
}

/// Where and what is wrong. No value is quoted: it may be a key that somebody wrote into the wrong file.
fn problem_of(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let message = error.message();
    let elided = |open: &str, close: &str| {
        let (start, end) = (message.split_once(open)?.0, message.rsplit_once(close)?.1);
        Some(format!("{start}{open}…{close}{end}"))
    };
    let message = elided("unknown variant `", "`, expected ").or_else(|| elided("\"", "\""));
    let message = message.unwrap_or_else(|| error.message().to_owned());
    format!("line {}: {message}", before.matches('\n').count() + 1)
}

/// A running agent reads the file again in its loop, so that neither its kind nor its length may
/// hold it up.
fn read_text(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let (file, _) = regular_file::open(path, Links::Follow).map_err(unreadable)?;
    let mut text = String::new();
    file.take(FILE_LEN_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_LEN_MAX {
        let problem = "it is too long for a configuration";
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, problem)));
    }
    Ok(text)
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}: write one, or name it with --config FILE", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file makes no sense.
    #[error("the configuration {} is not valid: {problem}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_in_place_of_the_file_is_named_and_holds_no_agent_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(Config::read_again(&path).map(|_| ())));
        let answer = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        let Err(ConfigError::Unreadable { source, .. }) = answer else { panic!("{answer:?}") };
        assert!(source.to_string().contains("FIFO"), "{source}");
    }

    #[test]
    fn an_empty_file_is_the_default_configuration() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.hub.port, 8883);
        assert_eq!(config.policy().renew_after_ms, 48 * 60 * 1_000);
        assert_eq!(config.policy().propagation_window_ms, Policy::DEFAULT.propagation_window_ms);
    }

    #[test]
    fn the_example_names_every_setting_with_its_default() {
        let text = include_str!("../../docs/agent.example.toml");
        let example = Config::parse(text).unwrap();
        assert_eq!(format!("{example:?}"), format!("{:?}", Config::default()));
        // What is left out because it has no default stands there as a comment.
        let named = |name: &str| {
            text.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{name} = ")))
        };
        for name in [
            "connection_string_file",
            "ca_file",
            "system_roots",
            "port",
            "https_port",
            "keep_alive_secs",
            "takeover",
            "dir",
            "socket",
            "tokens",
            "propagation_window_secs",
            "allow_unsealed",
            "allow_unauthenticated",
            "lifetime_secs",
        ] {
            assert!(named(name), "{name}");
        }
    }

    #[test]
    fn a_misspelt_setting_is_named_with_its_line() {
        let problem = Config::parse("[hub]\nprot = 8883\n").unwrap_err();
        assert!(problem.contains("prot") && problem.contains("line 2"), "{problem}");
    }

    #[test]
    fn a_key_in_the_wrong_place_is_not_quoted() {
        for text in [
            "[hub]\nSharedAccessKey = \"c2VjcmV0\"\n",
            "[hub]\nport = \"c2VjcmV0\"\n",
            "[hub]\ntakeover = \"a\\\"c2VjcmV0\"\n",
            "[hub]\nHostName=localhost;SharedAccessKey=c2VjcmV0\n",
        ] {
            let problem = Config::parse(text).unwrap_err();
            assert!(problem.contains("line 2") && !problem.contains("c2VjcmV0"), "{problem}");
        }
    }

    #[test]
    fn a_short_window_makes_trials_quicker_at_first_and_no_less_rare_in_the_end() {
        let policy = Config::parse("[rotation]\npropagation_window_secs = 1\n").unwrap().policy();
        assert_eq!(policy.trial_delay_ms_min, 200);
        assert_eq!(policy.trial_delay_ms_max, Policy::DEFAULT.trial_delay_ms_max);
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        for (text, named) in [
            ("[token]\nlifetime_secs = 1\n", "lifetime_secs is 1"),
            ("[rotation]\npropagation_window_secs = 100000000\n", "propagation_window_secs"),
            ("[hub]\nkeep_alive_secs = 2000\n", "between 10 and 1177"),
            ("[hub]\nport = 0\n", "port is 0"),
        ] {
            let problem = Config::parse(text).unwrap_err();
            assert!(problem.contains(named), "{problem}");
        }
    }
}
