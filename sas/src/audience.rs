//! Whether a token's resource is the one that is asked for: the only place where `sr` is decoded.

use crate::percent;

/// How much of a resource a token may leave out.
#[derive(Clone, Copy)]
pub(crate) enum Scope {
    /// Nothing: the key of a device or module.
    Exact,
    /// Whole segments at its end: the key of a policy.
    Prefix,
}

/// Whether one of the three readings of `sr` (as it stands, decoded once, decoded twice: the C# SDK encodes ids twice)
/// names the plain resource.
pub(crate) fn names(sr: &str, plain_resource: &str, scope: Scope) -> bool {
    let once = percent::decode(sr.bytes());
    let twice = percent::decode(once.clone());
    let expected = Resource::split(plain_resource);
    expected.is_named_by(sr.bytes(), scope)
        || expected.is_named_by(once, scope)
        || expected.is_named_by(twice, scope)
}

/// A plain resource, taken apart where the rules of comparison change.
struct Resource<'r> {
    /// Without port; any case.
    host: &'r [u8],
    /// Empty, or from the first `/` on; as it stands.
    path: &'r [u8],
}

impl<'r> Resource<'r> {
    fn split(plain: &'r str) -> Self {
        let (authority, path) = plain.split_at(plain.find('/').unwrap_or(plain.len()));
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) => host,
            _ => authority,
        };
        Self { host: host.as_bytes(), path: path.as_bytes() }
    }

    fn is_named_by(&self, mut name: impl Iterator<Item = u8> + Clone, scope: Scope) -> bool {
        if !self.host.iter().all(|want| name.next().is_some_and(|byte| byte.eq_ignore_ascii_case(want))) {
            return false;
        }
        let mut path = skip_port(name);
        for (i, &want) in self.path.iter().enumerate() {
            match path.next() {
                Some(byte) if byte == want => {}
                Some(_) => return false,
                // The token's resource ends here: a prefix, if this is the end of a segment.
                None => return matches!(scope, Scope::Prefix) && (i == 0 || want == b'/'),
            }
        }
        path.next().is_none()
    }
}

fn skip_port<I: Iterator<Item = u8> + Clone>(name: I) -> I {
    let mut ahead = name.clone();
    if ahead.next() != Some(b':') {
        return name;
    }
    loop {
        let here = ahead.clone();
        if !ahead.next().is_some_and(|byte| byte.is_ascii_digit()) {
            return here;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Scope, names};

    #[test]
    fn host_is_compared_without_case_and_port_and_ids_as_they_stand() {
        let equal = |name, expected| names(name, expected, Scope::Exact);
        assert!(equal("HUB.net/devices/D", "hub.NET/devices/D"));
        assert!(!equal("hub.net/devices/D", "hub.net/devices/d"));
        assert!(!equal("hub.net/Devices/d", "hub.net/devices/d"));
        assert!(equal("hub.net:8883/devices/d", "hub.net/devices/d"));
        assert!(equal("hub.net/devices/d", "hub.net:443/devices/d"));
        assert!(equal("hub.net:1", "hub.net:2"));
        assert!(!equal("hub.net:1x/devices/d", "hub.net/devices/d"));
        assert!(!equal("hub.net/devices/d:1", "hub.net/devices/d"));
        assert!(equal("hub.net/devices/d:1", "hub.net/devices/d:1"));
        assert!(!equal("hub.net/devices/dd", "hub.net/devices/d"));
        assert!(!equal("hub.net/devices", "hub.net/devices/d"));
        assert!(
            equal("[::1]:9/devices/d", "[::1]/devices/d") && !equal("[::2]/devices/d", "[::1]/devices/d")
        );
        assert!(!equal("", "hub.net") && !equal("hub.ne", "hub.net") && !equal("hub.nets", "hub.net"));
    }

    #[test]
    fn policy_covers_whole_segments_only() {
        let covers = |name, expected| names(name, expected, Scope::Prefix);
        assert!(covers("hub", "hub/devices/d") && covers("HUB:1", "hub/devices/d") && covers("hub", "hub"));
        assert!(covers("hub/devices", "hub/devices/d") && covers("hub/devices/d", "hub/devices/d"));
        assert!(!covers("hub/dev", "hub/devices/d") && !covers("hub/devices/d", "hub/devices/dd"));
        assert!(!covers("hub/devices/", "hub/devices/d") && !covers("hu", "hub/devices/d"));
        assert!(!covers("hub/devices/d/modules/m", "hub/devices/d"));
    }

    #[test]
    fn resource_may_be_encoded_up_to_twice() {
        for sr in
            ["h/devices/a%b", "h%2fdevices%2Fa%25b", "h%2Fdevices%2Fa%2525b", "h%252Fdevices%252Fa%2525b"]
        {
            assert!(names(sr, "h/devices/a%b", Scope::Exact), "{sr}");
        }
        assert!(!names("h%25252Fdevices", "h/devices", Scope::Exact));
    }
}
