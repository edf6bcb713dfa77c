//! Message authentication codes under a device's key: what only a holder of that key can make.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use twinkey_sas::Key;

use crate::encoding;

/// HMAC-SHA256 (RFC 2104) over the lines of a text, the first of which says what the text is. 32 bytes; base64 in text and
/// JSON.
///
/// The labels keep the texts apart from each other and from the string that a SAS token signs, whose first line is a
/// percent-encoded resource and so never has a slash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(#[serde(with = "encoding::base64_32")] [u8; 32]);

impl Mac {
    pub(crate) fn of(key: &Key, lines: &[&str]) -> Self {
        let mut parts: Vec<&[u8]> = Vec::with_capacity(lines.len() * 2);
        for line in lines {
            if !parts.is_empty() {
                parts.push(b"\n");
            }
            parts.push(line.as_bytes());
        }
        Self(key.hmac(&parts))
    }

    /// Whether both are the same, in constant time.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encoding::to_base64(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::Mac;
    use twinkey_sas::Key;

    #[test]
    fn lines_are_joined_by_line_feeds_and_every_one_counts() {
        let key = Key::from_bytes(&[1; 32]).unwrap();
        assert_eq!(Mac::of(&key, &["a", "b"]), Mac::of(&key, &["a\nb"]));
        assert!(!Mac::of(&key, &["a", "b"]).is(&Mac::of(&key, &["a", ""])));
        assert!(!Mac::of(&key, &["a"]).is(&Mac::of(&Key::from_bytes(&[2; 32]).unwrap(), &["a"])));
    }

    #[test]
    fn text_form_reads_back_and_nothing_else_is_read() {
        let mac = Mac([7; 32]);
        let json = serde_json::to_string(&mac).unwrap();
        assert_eq!(serde_json::from_str::<Mac>(&json).unwrap(), mac);
        for bad in
            ["\"\"", "7", "\"AAAA\"", "\"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc\"", "null", "{}", "[]"]
        {
            assert!(serde_json::from_str::<Mac>(bad).is_err(), "{bad}");
        }
    }
}
