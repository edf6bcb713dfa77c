//! Verifying Shared Access Signature tokens, with code that shares nothing with the agent's.
//!
//! IoT Hub documentation, "Control access to IoT Hub using SAS"; the order of checks and the leniencies are those of
//! EdgeHub's `SharedAccessSignature` and token authenticator.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use crate::keys::Key;

/// Longest token in bytes that is looked at: several times what the longest ids can need.
const TOKEN_LEN_MAX: usize = 4096;

/// A token taken apart, and not yet believed.
pub(crate) struct Token<'a> {
    /// `sr` exactly as it stands in the token: that is what was signed.
    resource: &'a str,
    signature: Vec<u8>,
    /// `se` exactly as it stands in the token.
    expiry_text: &'a str,
    /// `se`, Unix seconds.
    pub(crate) expiry: u64,
    /// `skn`; an empty one counts as absent, since the C SDK sends it so.
    pub(crate) policy: Option<String>,
}

impl<'a> Token<'a> {
    /// Takes a token apart; `None` if it isn't one. The fields may come in any order, their names in any case.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        if text.len() > TOKEN_LEN_MAX {
            return None;
        }
        let (scheme, fields) = text.split_once(char::is_whitespace)?;
        if !scheme.eq_ignore_ascii_case("SharedAccessSignature") {
            return None;
        }
        let [mut resource, mut signature, mut expiry, mut policy] = [None; 4];
        for field in fields.trim().split('&') {
            let (name, value) = field.split_once('=')?;
            let place = match name.to_ascii_lowercase().as_str() {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expiry,
                "skn" => &mut policy,
                _ => continue,
            };
            if place.replace(value).is_some() {
                return None;
            }
        }
        let expiry_text = expiry.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        Some(Self {
            resource: resource?,
            signature: STANDARD.decode(decode(signature?)?).ok()?,
            expiry_text,
            expiry: expiry_text.parse().ok()?,
            policy: match policy {
                None | Some("") => None,
                Some(name) => Some(decode(name)?),
            },
        })
    }

    /// Whether `se` lies more than `skew` in the past.
    pub(crate) fn is_expired(&self, unix_time: Duration, skew: Duration) -> bool {
        Duration::from_secs(self.expiry).saturating_add(skew) < unix_time
    }

    pub(crate) fn is_signed_by(&self, key: &Key) -> bool {
        key.has_signed(format!("{}\n{}", self.resource, self.expiry_text).as_bytes(), &self.signature)
    }

    /// Whether the token names exactly `host` + `path`, as one signed with an identity's own key must.
    pub(crate) fn names(&self, host: &str, path: &str) -> bool {
        self.readings().iter().any(|resource| {
            let (token_host, token_path) = split_resource(resource);
            is_same_host(token_host, host) && token_path == path
        })
    }

    /// Whether the token names a whole-segment prefix of `host` + `path`, as one of a policy may.
    pub(crate) fn covers(&self, host: &str, path: &str) -> bool {
        self.readings().iter().any(|resource| {
            let (token_host, token_path) = split_resource(resource);
            let rest = path.strip_prefix(token_path.trim_end_matches('/'));
            is_same_host(token_host, host)
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// `sr` raw, decoded once and decoded twice: the SDKs do all three.
    fn readings(&self) -> Vec<String> {
        let once = decode(self.resource);
        let twice = once.as_deref().and_then(decode);
        [Some(self.resource.to_owned()), once, twice].into_iter().flatten().collect()
    }
}

/// Compares host names without regard to case or port.
pub(crate) fn is_same_host(one: &str, other: &str) -> bool {
    let name = |host: &str| host.split_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
    name(one) == name(other)
}

/// Splits a resource into host and path; the path keeps its slash.
fn split_resource(resource: &str) -> (&str, &str) {
    resource.find('/').map_or((resource, ""), |slash| resource.split_at(slash))
}

/// Percent-decodes; a `+` stays a `+`. `None` if the result is no UTF-8.
fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        source: String,
        resource: String,
        key_base64: String,
        expiry: u64,
        policy: Option<String>,
        token: String,
        kind: String,
    }

    fn vectors() -> Vec<Vector> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../sas/tests/vectors/sas.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn tokens_of_every_official_sdk_verify() {
        let vectors = vectors();
        assert!(vectors.len() >= 77);
        for vector in vectors {
            let context = format!("{} {} {}", vector.source, vector.kind, vector.resource);
            let token = Token::parse(&vector.token).unwrap_or_else(|| panic!("{context}"));
            let (host, path) = split_resource(&vector.resource);
            assert!(token.is_signed_by(&Key::decode(&vector.key_base64).unwrap()), "{context}");
            assert!(!token.is_signed_by(&Key::decode("b3RoZXIga2V5").unwrap()), "{context}");
            assert_eq!(token.expiry, vector.expiry, "{context}");
            assert!(token.names(host, path) && token.covers(host, path), "{context}");
            assert!(!token.names(host, &format!("{path}x")) && !token.covers("elsewhere", path), "{context}");
            if let Some(shorter) =
                path.get(..path.len().saturating_sub(1)).filter(|shorter| !shorter.is_empty())
            {
                assert!(!token.names(host, shorter) && !token.covers(host, shorter), "{context}");
            }
            let (skew, second) = (Duration::from_secs(300), Duration::from_secs(1));
            let last = Duration::from_secs(vector.expiry) + skew;
            assert!(!token.is_expired(last, skew) && token.is_expired(last + second, skew), "{context}");
            if vector.kind == "device" || vector.kind == "module" {
                assert_eq!(token.policy, None, "{context}");
            }
            if vector.kind == "service" {
                assert_eq!(token.policy, vector.policy, "{context}");
            }
        }
    }

    #[test]
    fn a_changed_character_never_verifies() {
        let vector = vectors().into_iter().find(|vector| vector.kind == "device").unwrap();
        let key = Key::decode(&vector.key_base64).unwrap();
        let (host, path) = split_resource(&vector.resource);
        for at in 0..vector.token.len() {
            let mut changed = vector.token.clone().into_bytes();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).unwrap();
            let believed = Token::parse(&changed)
                .is_some_and(|token| token.is_signed_by(&key) && token.names(host, path) && token.expiry > 0);
            assert!(!believed, "{changed}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let sig = "kcWxXAK2OAaAoq2oCkaGzX2NMqDB8nCyNuq2fPYCDhk%3D";
        for text in [
            String::new(),
            "SharedAccessSignature".to_owned(),
            format!("Bearer sr=uri&sig={sig}&se=1"),
            format!("SharedAccessSignature sr=uri&sig={sig}"),
            format!("SharedAccessSignature sr=uri&sig={sig}&se="),
            format!("SharedAccessSignature sr=uri&sig={sig}&se=-1"),
            format!("SharedAccessSignature sr=uri&sig={sig}&se=99999999999999999999"),
            format!("SharedAccessSignature sr=uri&sr=uri&sig={sig}&se=1"),
            "SharedAccessSignature sr=uri&sig=%ff&se=1".to_owned(),
            format!("SharedAccessSignature sr={}&sig={sig}&se=1", "u".repeat(TOKEN_LEN_MAX)),
        ] {
            assert!(Token::parse(&text).is_none(), "{text}");
        }
        let far =
            Token::parse("SharedAccessSignature sr=uri&sig=AA%3D%3D&se=18446744073709551615&skn=").unwrap();
        assert!(
            !far.is_expired(Duration::MAX - Duration::from_secs(1), Duration::MAX) && far.policy.is_none()
        );
    }

    #[test]
    fn a_policy_covers_whole_segments_only() {
        let token = |resource| format!("SharedAccessSignature sr={resource}&sig=AA%3D%3D&se=1");
        for (resource, path, covered) in [
            ("hub", "/devices/d1", true),
            ("HUB%3A8443", "/devices/d1", true),
            ("hub%2Fdevices", "/devices/d1", true),
            ("hub%2Fdevices%2F", "/devices/d1", true),
            ("hub%2Fdev", "/devices/d1", false),
            ("hub%2Fdevices%2FD1", "/devices/d1", false),
            ("hub%2Fdevices%2Fd1%2Fmodules", "/devices/d1", false),
        ] {
            let token = token(resource);
            assert_eq!(Token::parse(&token).unwrap().covers("hub", path), covered, "{resource}");
        }
    }
}
