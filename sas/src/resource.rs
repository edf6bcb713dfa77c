//! What a token gives access to.

use core::fmt;

use crate::percent;

/// A resource, percent-encoded as it stands in `sr`: strict, upper case, once, as the Python and embedded C device
/// SDKs write it. A hub signs the text as it stands, so one consistent form is all it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceUri {
    /// Zero beyond `len`.
    text: [u8; ResourceUri::MAX_LEN],
    len: u16,
}

impl ResourceUri {
    /// Longest encoded resource in bytes: host (253) and port, a device id and a module id (128 each, every
    /// character escaped), the separators, and room to spare up to a whole block of SHA-256.
    pub const MAX_LEN: usize = 1088;

    /// The hub itself: what a policy's token names. `host` may carry a port.
    ///
    /// # Errors
    /// [`ResourceError`], as for all of these.
    pub fn hub(host: &str) -> Result<Self, ResourceError> {
        Self::from_parts(&[host])
    }

    /// `{host}/devices/{device_id}`.
    ///
    /// # Errors
    /// [`ResourceError`].
    pub fn device(host: &str, device_id: &str) -> Result<Self, ResourceError> {
        Self::from_parts(&[host, "/devices/", device_id])
    }

    /// `{host}/devices/{device_id}/modules/{module_id}`.
    ///
    /// # Errors
    /// [`ResourceError`].
    pub fn module(host: &str, device_id: &str, module_id: &str) -> Result<Self, ResourceError> {
        Self::from_parts(&[host, "/devices/", device_id, "/modules/", module_id])
    }

    /// `{id_scope}/registrations/{registration_id}`, of the Device Provisioning Service.
    ///
    /// # Errors
    /// [`ResourceError`].
    pub fn dps(id_scope: &str, registration_id: &str) -> Result<Self, ResourceError> {
        Self::from_parts(&[id_scope, "/registrations/", registration_id])
    }

    /// From the plain text, such as `host/devices/id`, of any resource.
    ///
    /// # Errors
    /// [`ResourceError`].
    pub fn from_plain(plain: &str) -> Result<Self, ResourceError> {
        Self::from_parts(&[plain])
    }

    /// The encoded text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The encoded text, followed by zeros up to a whole block of SHA-256 and beyond.
    #[inline]
    pub(crate) fn padded(&self) -> &[u8; Self::MAX_LEN] {
        &self.text
    }

    fn from_parts(parts: &[&str]) -> Result<Self, ResourceError> {
        if parts.iter().any(|part| part.is_empty()) {
            return Err(ResourceError::Empty);
        }
        let mut text = [0; Self::MAX_LEN];
        let mut len = 0;
        for part in parts {
            match text.get_mut(len..).and_then(|rest| percent::encode(part.as_bytes(), rest)) {
                Some(written) => len += written,
                None => {
                    let needed = parts.iter().fold(0, |len: usize, part| {
                        len.saturating_add(percent::encoded_len(part.as_bytes()))
                    });
                    return Err(ResourceError::TooLong { needed, max: Self::MAX_LEN });
                }
            }
        }
        Ok(Self { text, len: len as u16 })
    }
}

/// A borrowed resource: one of a fleet's, whose texts the caller keeps close together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceRef<'r>(&'r str);

impl<'r> ResourceRef<'r> {
    /// Takes the encoded text of a [`ResourceUri`], as [`ResourceUri::as_str`] gives it. `None` for a text that no
    /// [`ResourceUri`] has: empty, too long, or not strictly encoded.
    pub fn from_encoded(text: &'r str) -> Option<Self> {
        let fits = (1..=ResourceUri::MAX_LEN).contains(&text.len());
        (fits && percent::is_strictly_encoded(text.as_bytes())).then_some(Self(text))
    }

    /// The encoded text.
    pub fn as_str(self) -> &'r str {
        self.0
    }

    #[inline]
    pub(crate) fn as_bytes(self) -> &'r [u8] {
        self.0.as_bytes()
    }
}

impl<'r> From<&'r ResourceUri> for ResourceRef<'r> {
    fn from(resource: &'r ResourceUri) -> Self {
        Self(resource.as_str())
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why there is no such resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceError {
    /// A part, such as the host or an id, is empty.
    Empty,
    /// Longer than any name of a hub, a device and a module together.
    TooLong {
        /// Encoded length in bytes.
        needed: usize,
        /// [`ResourceUri::MAX_LEN`].
        max: usize,
    },
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => {
                f.write_str("resource lacks its host name or an id: give `host` or `host/devices/id`")
            }
            Self::TooLong { needed, max } => write!(
                f,
                "resource needs {needed} bytes once encoded, the limit is {max}: check the host name and the ids"
            ),
        }
    }
}

impl core::error::Error for ResourceError {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{ResourceError, ResourceRef, ResourceUri};

    #[test]
    fn resources_are_encoded_once_and_upper_case() {
        let text = |uri: Result<ResourceUri, _>| std::string::String::from(uri.unwrap().as_str());
        assert_eq!(text(ResourceUri::hub("localhost:9443")), "localhost%3A9443");
        assert_eq!(text(ResourceUri::device("h.net", "a%b~")), "h.net%2Fdevices%2Fa%25b~");
        assert_eq!(text(ResourceUri::module("h", "d", "$edgeHub")), "h%2Fdevices%2Fd%2Fmodules%2F%24edgeHub");
        assert_eq!(text(ResourceUri::dps("0ne0", "r")), "0ne0%2Fregistrations%2Fr");
        assert_eq!(ResourceUri::from_plain("h/devices/d"), ResourceUri::device("h", "d"));
    }

    #[test]
    fn only_what_a_resource_looks_like_is_borrowed_as_one() {
        for text in ["h", "h.net%2Fdevices%2Fa%25b~", "%24%FF"] {
            assert_eq!(ResourceRef::from_encoded(text).map(ResourceRef::as_str), Some(text));
        }
        for text in ["", "h/d", "h%2fd", "h%2", "h%", "%2G", "a b", "\u{e4}", "%41", &"h".repeat(1089)] {
            assert_eq!(ResourceRef::from_encoded(text), None, "{text}");
        }
        let resource = ResourceUri::device("h.net", "a%b").unwrap();
        assert_eq!(ResourceRef::from(&resource).as_str(), resource.as_str());
    }

    #[test]
    fn empty_parts_are_refused() {
        for uri in [
            ResourceUri::hub(""),
            ResourceUri::device("", "d"),
            ResourceUri::device("h", ""),
            ResourceUri::module("h", "d", ""),
            ResourceUri::dps("s", ""),
            ResourceUri::from_plain(""),
        ] {
            assert_eq!(uri, Err(ResourceError::Empty));
        }
    }

    #[test]
    fn longest_names_fit_and_longer_ones_say_what_they_need() {
        let (host, id) = ("h".repeat(253), "#".repeat(128));
        assert!(ResourceUri::module(&std::format!("{host}:65535"), &id, &id).is_ok());
        assert_eq!(
            ResourceUri::from_plain(&"#".repeat(400)),
            Err(ResourceError::TooLong { needed: 1200, max: ResourceUri::MAX_LEN })
        );
    }
}
