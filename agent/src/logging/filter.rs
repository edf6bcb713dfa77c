//! What is logged: the forms of `RUST_LOG` that anybody uses, `LEVEL` and `TARGET=LEVEL`, separated by commas.

use tracing::Metadata;
use tracing::level_filters::LevelFilter;

/// Levels by target.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// The longest target first: it has the first word.
    targets: Vec<(String, LevelFilter)>,
    /// For every other target.
    others: LevelFilter,
}

impl Filter {
    /// A filter, and the parts of `text` that make no sense.
    pub(super) fn parse(text: &str) -> (Self, Vec<String>) {
        let mut targets = Vec::new();
        // Whoever asks for more of one target goes on hearing of the others; `off` in front silences them.
        let mut others = LevelFilter::INFO;
        let mut not_understood = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (target, level) =
                part.split_once('=').map_or((None, part), |(target, level)| (Some(target), level));
            match (target, level.parse()) {
                (None, Ok(level)) => others = level,
                (Some(target), Ok(level)) if is_target(target) => targets.push((target.to_owned(), level)),
                _ => not_understood.push(part.to_owned()),
            }
        }
        targets.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        (Self { targets, others }, not_understood)
    }

    pub(super) fn allows(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level_of(metadata.target())
    }

    /// No target has more to say.
    pub(super) fn level_max(&self) -> LevelFilter {
        self.targets.iter().map(|(_, level)| *level).fold(self.others, LevelFilter::max)
    }

    fn level_of(&self, target: &str) -> LevelFilter {
        let own = self.targets.iter().find(|(beginning, _)| target.starts_with(beginning.as_str()));
        own.map_or(self.others, |(_, level)| *level)
    }
}

/// A path of Rust modules.
fn is_target(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_understood() {
        for (text, target, wanted) in [
            ("", "twinkey_agent", LevelFilter::INFO),
            ("debug", "any", LevelFilter::DEBUG),
            ("WARN", "any", LevelFilter::WARN),
            ("off", "any", LevelFilter::OFF),
            ("twinkey_agent=debug", "twinkey_agent::driver", LevelFilter::DEBUG),
            ("twinkey_agent=debug", "rustls", LevelFilter::INFO),
            ("off,twinkey_agent=debug", "rustls", LevelFilter::OFF),
            ("warn,twinkey_agent=trace", "rustls", LevelFilter::WARN),
            ("twinkey_agent=info, twinkey_agent::hub=trace", "twinkey_agent::hub::dial", LevelFilter::TRACE),
            ("twinkey_agent=info,twinkey_agent::hub=trace", "twinkey_agent::run", LevelFilter::INFO),
            ("twinkey_agent=off,info", "twinkey_agent", LevelFilter::OFF),
        ] {
            let (filter, not_understood) = Filter::parse(text);
            assert_eq!((filter.level_of(target), not_understood.len()), (wanted, 0), "{text} for {target}");
        }
        assert_eq!(Filter::parse("warn,twinkey_agent=trace").0.level_max(), LevelFilter::TRACE);
    }

    #[test]
    fn what_makes_no_sense_is_named_and_the_rest_counts() {
        for (text, wrong, level) in [
            ("twinkey_agent=loud", "twinkey_agent=loud", LevelFilter::INFO),
            ("[run{id=1}]=debug,warn", "[run{id=1}]=debug", LevelFilter::WARN),
            ("=debug", "=debug", LevelFilter::INFO),
            ("everything,debug", "everything", LevelFilter::DEBUG),
        ] {
            let (filter, not_understood) = Filter::parse(text);
            assert_eq!(
                (filter.level_of("twinkey_agent"), not_understood),
                (level, vec![wrong.to_owned()]),
                "{text}"
            );
        }
    }
}
