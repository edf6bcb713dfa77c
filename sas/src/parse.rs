//! Taking a token apart.

use core::fmt;

use crate::{
    base64,
    hmac::{HmacSha256, TAG_LEN},
    percent, secret,
    token::{Expiry, PREFIX},
};

/// A token taken apart: fields in any order, their names in any case, unknown ones passed over, as EdgeHub does.
#[derive(Clone)]
pub struct ParsedToken<'t> {
    /// `sr` as it stands in the token: what was signed.
    pub raw_resource: &'t str,
    /// `skn` as it stands in the token, percent-encoded; an empty one is none.
    pub policy: Option<&'t str>,
    /// `se`.
    pub expiry: Expiry,
    /// `se` as it stands in the token: what was signed.
    raw_expiry: &'t str,
    signature: [u8; TAG_LEN],
}

impl<'t> ParsedToken<'t> {
    /// Longest token that is read, in bytes: the longest resource encoded twice, with room for the other fields.
    pub const TOKEN_LEN_MAX: usize = 4096;

    /// Takes `SharedAccessSignature sr=…&sig=…&se=…[&skn=…]` apart.
    ///
    /// # Errors
    /// [`ParseError`] says which part is wrong, and never quotes it.
    pub fn parse(token: &'t str) -> Result<Self, ParseError> {
        if token.len() > Self::TOKEN_LEN_MAX {
            return Err(ParseError::TooLong { max: Self::TOKEN_LEN_MAX });
        }
        let fields = token
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_prefix(|c: char| c.is_ascii_whitespace()))
            .filter(|fields| !fields.contains(|c: char| c.is_ascii_whitespace()))
            .ok_or(ParseError::Prefix)?;

        let [mut sr, mut sig, mut se, mut skn] = [None; 4];
        for field in fields.split('&').filter(|field| !field.is_empty()) {
            let (name, value) = field.split_once('=').ok_or(ParseError::Field)?;
            let known = [("sr", &mut sr), ("sig", &mut sig), ("se", &mut se), ("skn", &mut skn)];
            for (field, seen) in known.into_iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)) {
                if seen.replace(value).is_some() {
                    return Err(ParseError::Duplicate { field });
                }
            }
        }
        let present = |value: Option<&'t str>, field| {
            value.filter(|value| !value.is_empty()).ok_or(ParseError::Missing { field })
        };
        let raw_resource = present(sr, "sr")?;
        let signature = decode_signature(present(sig, "sig")?)?;
        let raw_expiry = present(se, "se")?;
        Ok(Self {
            raw_resource,
            policy: skn.filter(|name| !name.is_empty()),
            expiry: parse_expiry(raw_expiry)?,
            raw_expiry,
            signature,
        })
    }

    /// Constant time.
    pub(crate) fn is_signed_by(&self, key: &HmacSha256) -> bool {
        let tag = key.tag(&[self.raw_resource.as_bytes(), b"\n", self.raw_expiry.as_bytes()]);
        secret::is_equal(&tag, &self.signature)
    }
}

impl fmt::Debug for ParsedToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParsedToken")
            .field("raw_resource", &self.raw_resource)
            .field("policy", &self.policy)
            .field("expiry", &self.expiry)
            .finish_non_exhaustive()
    }
}

/// Why a text is no token. Never quotes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// Doesn't begin with `SharedAccessSignature` and one space, or has white space further on.
    Prefix,
    /// A field has no `=`.
    Field,
    /// `sr`, `sig` or `se` is not there or empty.
    Missing {
        /// Its name.
        field: &'static str,
    },
    /// A field is there twice.
    Duplicate {
        /// Its name.
        field: &'static str,
    },
    /// `se` is no number of seconds.
    Expiry,
    /// `sig` is not the percent-encoded, strict base64 of 32 bytes.
    Signature,
    /// Longer than any token.
    TooLong {
        /// [`ParsedToken::TOKEN_LEN_MAX`].
        max: usize,
    },
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix => {
                f.write_str("token is not `SharedAccessSignature`, one space, and fields without spaces")
            }
            Self::Field => f.write_str("token has a field without `=`"),
            Self::Missing { field } => write!(f, "token lacks the field `{field}`"),
            Self::Duplicate { field } => write!(f, "token has the field `{field}` twice"),
            Self::Expiry => f.write_str("token's `se` is no number of Unix seconds"),
            Self::Signature => f.write_str("token's `sig` is not the percent-encoded base64 of 32 bytes"),
            Self::TooLong { max } => write!(f, "token is longer than {max} bytes"),
        }
    }
}

impl core::error::Error for ParseError {}

fn parse_expiry(text: &str) -> Result<Expiry, ParseError> {
    // `u64::from_str` would take a leading `+`.
    if !text.bytes().all(|c| c.is_ascii_digit()) {
        return Err(ParseError::Expiry);
    }
    text.parse().map(Expiry::at).map_err(|_| ParseError::Expiry)
}

fn decode_signature(text: &str) -> Result<[u8; TAG_LEN], ParseError> {
    let mut encoded = [0; base64::encoded_len(TAG_LEN)];
    let mut decoded = percent::decode(text.bytes());
    for slot in &mut encoded {
        *slot = decoded.next().ok_or(ParseError::Signature)?;
    }
    let mut signature = [0; TAG_LEN];
    match base64::decode(&encoded, &mut signature) {
        Ok(TAG_LEN) if decoded.next().is_none() => Ok(signature),
        Ok(_) | Err(_) => Err(ParseError::Signature),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{ParseError, ParsedToken};
    use crate::Expiry;
    use std::{format, string::String};

    const SIG: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%3D";

    #[test]
    fn fields_come_in_any_order_and_case_and_unknown_or_empty_ones_are_passed_over() {
        for text in [
            format!("SharedAccessSignature sr=h%2F&sig={SIG}&se=7"),
            format!("SharedAccessSignature se=7&sig={SIG}&sr=h%2F"),
            format!("SharedAccessSignature\t&sig={SIG}&x=1&&se=7&sr=h%2F&"),
            format!("SharedAccessSignature SR=h%2F&Sig={SIG}&sE=7&SKN="),
        ] {
            let token = ParsedToken::parse(&text).unwrap();
            assert_eq!(
                (token.raw_resource, token.policy, token.expiry),
                ("h%2F", None, Expiry::at(7)),
                "{text}"
            );
        }
        let named = format!("SharedAccessSignature skn=a%20b&sr=h&sig={SIG}&se=7");
        assert_eq!(ParsedToken::parse(&named).unwrap().policy, Some("a%20b"));
    }

    #[test]
    fn malformed_tokens_are_refused_by_what_is_wrong() {
        for (text, error) in [
            (String::from("sharedaccesssignature sr=h"), ParseError::Prefix),
            (String::from("SharedAccessSignature"), ParseError::Prefix),
            (String::from("SharedAccessSignature  sr=h"), ParseError::Prefix),
            (format!("SharedAccessSignature sr=h&sig={SIG}&se=1\n"), ParseError::Prefix),
            (String::from("SharedAccessSignature sr=h&sig"), ParseError::Field),
            (String::from("SharedAccessSignature "), ParseError::Missing { field: "sr" }),
            (format!("SharedAccessSignature sr=&sig={SIG}&se=1"), ParseError::Missing { field: "sr" }),
            (format!("SharedAccessSignature sr=h&sig={SIG}"), ParseError::Missing { field: "se" }),
            (String::from("SharedAccessSignature sr=h&se=1"), ParseError::Missing { field: "sig" }),
            (
                format!("SharedAccessSignature sr=h&SR=i&sig={SIG}&se=1"),
                ParseError::Duplicate { field: "sr" },
            ),
            (format!("SharedAccessSignature sr=h&sig={SIG}&se=+1"), ParseError::Expiry),
            (format!("SharedAccessSignature sr=h&sig={SIG}&se=18446744073709551616"), ParseError::Expiry),
            (format!("SharedAccessSignature sr=h&sig={SIG}A&se=1"), ParseError::Signature),
            (String::from("SharedAccessSignature sr=h&sig=AAAA&se=1"), ParseError::Signature),
            (format!("SharedAccessSignature sr=h&sig={}B%3D&se=1", &SIG[..42]), ParseError::Signature),
            (
                "x".repeat(ParsedToken::TOKEN_LEN_MAX + 1),
                ParseError::TooLong { max: ParsedToken::TOKEN_LEN_MAX },
            ),
        ] {
            assert_eq!(ParsedToken::parse(&text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn debug_does_not_show_the_signature() {
        let text = format!("SharedAccessSignature sr=h&sig={SIG}&se=7");
        assert_eq!(
            format!("{:?}", ParsedToken::parse(&text).unwrap()),
            "ParsedToken { raw_resource: \"h\", policy: None, expiry: Expiry(7), .. }"
        );
    }
}
