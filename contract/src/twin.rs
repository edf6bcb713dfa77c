//! The twin as a device reads it, `{"desired":{…},"reported":{…}}`. [`Twin::find`] looks for the two sections that are
//! ours and passes over the rest without holding it: that belongs to others and may be as large as they like, up to
//! [`TWIN_LEN_MAX`].

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::{SECTION, report::Report};

/// Longest twin document that is read, in bytes: the longest that a hub can make of what it counts. It takes 32 KB of
/// desired and 32 KB of reported properties. A name or string counts its UTF-8 bytes without control characters, a
/// number 8, a boolean 4, an object what is in it (Microsoft, "Understand and use device twins": twin size). In JSON
/// that becomes, at most:
///
/// | | counted | bytes |
/// |---|--:|--:|
/// | a name of one letter for an empty object, list or string, `"a":{},` | 1 | 7 |
/// | the same with a name that needs an escape, `"\"":{},`; an object has room for two of them, `"` and `\` | 1 | 8 |
/// | such a character in a string, written as `\u0022` | 1 | 6 |
/// | a boolean, `"a":false,` | 5 | 10 |
/// | a number, `"a":-2.2250738585072014e-308,` | 9 | 29 |
///
/// That is 8 bytes for each counted one, so 8 × 2 × 32 KiB. The objects that so many names with escapes need have one
/// comma less each, so that 7.5 bytes can be reached: what is left holds the braces and versions around it.
///
/// What the hub does not count has no bound: control characters (six bytes each), and empty values in a list.
pub const TWIN_LEN_MAX: usize = 512 * 1024;

/// Longest `keyRenewal` section that is read, in bytes. An offer of two sealed keys takes less than 1 KiB, and so does a
/// report.
pub const SECTION_LEN_MAX: usize = 16 * 1024;

/// Where our sections stand in a twin.
#[derive(Clone, Copy, Debug)]
pub struct Twin<'a> {
    desired: Found<'a>,
    reported: Found<'a>,
}

/// Why a document is no twin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TwinError {
    /// Longer than [`TWIN_LEN_MAX`].
    #[error(
        "the twin has {len} bytes, and {TWIN_LEN_MAX} are read: take large properties out of it, control characters and lists of empty values above all, which the hub does not count"
    )]
    TooLarge {
        /// Bytes.
        len: usize,
    },
    /// Not JSON, or without one `desired` object.
    #[error("the twin is no JSON with one `desired` object (line {line}, column {column})")]
    Malformed {
        /// Where reading stopped, from 1.
        line: usize,
        /// Where reading stopped, in bytes.
        column: usize,
    },
}

/// Why a `keyRenewal` section can't be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SectionError {
    /// Longer than [`SECTION_LEN_MAX`].
    #[error("`keyRenewal` has {len} bytes, more than the {SECTION_LEN_MAX} that are read")]
    TooLong {
        /// Bytes.
        len: usize,
    },
    /// It stands there more than once.
    #[error("`keyRenewal` stands there more than once")]
    Repeated,
    /// A name in it stands there more than once, a text in it is no Unicode, or it is nested too deeply.
    #[error("`keyRenewal` has a name twice, a text that is no Unicode, or too many levels")]
    Unreadable,
}

impl<'a> Twin<'a> {
    /// Finds the sections in the body of the answer to a device's twin GET.
    ///
    /// # Errors
    /// [`TwinError`].
    pub fn find(document: &'a [u8]) -> Result<Self, TwinError> {
        if document.len() > TWIN_LEN_MAX {
            return Err(TwinError::TooLarge { len: document.len() });
        }
        serde_json::from_slice(document)
            // Only the position: serde's message may quote what it found.
            .map_err(|error| TwinError::Malformed { line: error.line(), column: error.column() })
    }

    /// The desired `keyRenewal` section. `None`: there is none. It may hold a key; wipe it.
    ///
    /// # Errors
    /// [`SectionError`].
    pub fn desired(&self) -> Result<Option<Value>, SectionError> {
        self.desired.read()
    }

    /// The report that stands in the reported properties. `None`: no agent has reported.
    ///
    /// # Errors
    /// As [`Report::read`], a sentence.
    pub fn report(&self) -> Result<Option<Report>, String> {
        match self.reported.read() {
            Ok(Some(section)) => {
                Report::read(&Value::Object(Map::from_iter([(SECTION.to_owned(), section)])))
            }
            Ok(None) => Ok(None),
            Err(error) => Err(format!("in the reported properties, {error}")),
        }
    }
}

impl<'de> Deserialize<'de> for Twin<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TwinVisitor)
    }
}

struct TwinVisitor;

impl<'de> Visitor<'de> for TwinVisitor {
    type Value = Twin<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a twin")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut desired, mut reported) = (None, None);
        while let Some(name) = map.next_key_seed(OneOf(["desired", "reported"]))? {
            match name {
                Some("desired") if desired.is_none() => desired = Some(map.next_value()?),
                // A hub always sends an object; whatever else has no report.
                Some("reported") if reported.is_none() => {
                    reported = Some(map.next_value::<Option<Found<'_>>>()?.unwrap_or_default());
                }
                Some(_) => return Err(A::Error::custom("twice")),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let desired = desired.ok_or_else(|| A::Error::custom("no desired properties"))?;
        Ok(Twin { desired, reported: reported.unwrap_or_default() })
    }
}

/// What properties have under our name.
#[derive(Clone, Copy, Debug, Default)]
enum Found<'a> {
    #[default]
    Nothing,
    Once(&'a RawValue),
    Repeated,
}

impl Found<'_> {
    fn read(&self) -> Result<Option<Value>, SectionError> {
        let section = match self {
            Self::Nothing => return Ok(None),
            Self::Repeated => return Err(SectionError::Repeated),
            Self::Once(section) => section.get(),
        };
        if section.len() > SECTION_LEN_MAX {
            return Err(SectionError::TooLong { len: section.len() });
        }
        match serde_json::from_str(section) {
            Ok(Unambiguous(Value::Null)) => Ok(None),
            Ok(Unambiguous(section)) => Ok(Some(section)),
            Err(_) => Err(SectionError::Unreadable),
        }
    }
}

impl<'de> Deserialize<'de> for Found<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PropertiesVisitor)
    }
}

struct PropertiesVisitor;

impl<'de> Visitor<'de> for PropertiesVisitor {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("properties")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Found::Nothing;
        while let Some(name) = map.next_key_seed(OneOf([SECTION]))? {
            if name.is_none() {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let section = map.next_value()?;
            found = match found {
                Found::Nothing => Found::Once(section),
                Found::Once(_) | Found::Repeated => Found::Repeated,
            };
        }
        Ok(found)
    }
}

/// A name: which of these it is, if any. Nothing of another one is held.
struct OneOf<const N: usize>([&'static str; N]);

impl<'de, const N: usize> DeserializeSeed<'de> for OneOf<N> {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<const N: usize> Visitor<'_> for OneOf<N> {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.into_iter().find(|known| *known == name))
    }
}

/// JSON in which no object has a name twice: two readers could take each another of the values.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnambiguousVisitor).map(Self)
    }
}

struct UnambiguousVisitor;

impl<'de> Visitor<'de> for UnambiguousVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unambiguous(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((name, Unambiguous(value))) = map.next_entry::<String, _>()? {
            if fields.insert(name, value).is_some() {
                return Err(A::Error::custom("a name stands there twice"));
            }
        }
        Ok(fields.into())
    }
}
