//! Tokens in the form that we and the official SDKs write, recognised without taking them apart.

use crate::{decimal::Decimal, token::PREFIX};

/// A token `SharedAccessSignature sr={sr}&sig={sig}&se={se}` whose `sr`, decoded once, is the expected resource.
///
/// Whatever is recognised here and has the signature that we would write is good by the general rules too; what
/// is not recognised is not refused, but taken apart.
pub(crate) struct Canonical<'t> {
    pub(crate) sr: &'t [u8],
    /// Not looked at.
    pub(crate) sig: &'t [u8],
    pub(crate) se: Decimal,
    pub(crate) expiry_unix_secs: u64,
}

impl<'t> Canonical<'t> {
    #[inline]
    pub(crate) fn recognise(token: &'t str, plain_resource: &str) -> Option<Self> {
        let fields = token.as_bytes().strip_prefix(PREFIX.as_bytes())?.strip_prefix(b" sr=")?;
        let sr_len = encoded_prefix_len(fields, plain_resource.as_bytes()).filter(|&len| len > 0)?;
        let (sr, rest) = fields.split_at_checked(sr_len)?;
        let rest = rest.strip_prefix(b"&sig=")?;
        let (se, expiry_unix_secs) = Decimal::read_back_from_end(rest)?;
        let sig = rest.get(..rest.len().checked_sub(se.len())?)?.strip_suffix(b"&se=")?;
        Some(Self { sr, sig, se, expiry_unix_secs })
    }
}

/// Length of the start of `encoded` that decodes to `plain`: each byte as it stands, or as an escape with upper-case
/// digits. `&`, `%` and what is below them in ASCII, white space above all, don't count as standing for themselves.
#[inline]
fn encoded_prefix_len(encoded: &[u8], plain: &[u8]) -> Option<usize> {
    let (mut at, mut rest) = (0, plain);
    while !rest.is_empty() {
        let here = encoded.get(at..)?;
        let equal = equal_len(here, rest);
        (at, rest) = (at + equal, rest.get(equal..)?);
        if equal < 8 {
            let Some((&byte, after)) = rest.split_first() else { break };
            let here = encoded.get(at..)?.first_chunk::<3>()?;
            if *here != crate::percent::escape(byte) {
                return None;
            }
            (at, rest) = (at + 3, after);
        }
    }
    Some(at)
}

/// How many of the next eight bytes, at most, are equal and stand for themselves.
#[inline]
fn equal_len(a: &[u8], b: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHEST: u64 = ONES << 7;
    /// The first character above `%` and `&`.
    const FIRST_PLAIN: u64 = b'\'' as u64;
    let (Some(a), Some(b)) = (a.first_chunk(), b.first_chunk()) else {
        let is_equal = |(a, b): &(&u8, &u8)| a == b && u64::from(**a) >= FIRST_PLAIN;
        return a.iter().zip(b).take(7).take_while(is_equal).count();
    };
    let (a, b) = (u64::from_le_bytes(*a), u64::from_le_bytes(*b));
    // Exact up to the first byte that is marked, and only that one counts.
    let below = a.wrapping_sub(ONES * FIRST_PLAIN) & !a & HIGHEST;
    (((a ^ b) | below).trailing_zeros() / 8) as usize
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Canonical, encoded_prefix_len};
    use crate::percent;
    use proptest::prelude::*;
    use std::{format, string::String, vec};

    #[test]
    fn characters_that_end_a_field_do_not_stand_for_themselves() {
        for byte in 0..=255u8 {
            let text = [b'a', byte, b'b'];
            let alone = encoded_prefix_len(&text, &text).is_some();
            assert_eq!(alone, byte > b'&', "{byte:#x}");
            let long = [b'a', b'a', byte, b'b', b'b', b'b', b'b', b'b', b'b', b'b'];
            assert_eq!(encoded_prefix_len(&long, &long).is_some(), alone, "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn strict_encoding_is_recognised_whatever_follows(plain in proptest::collection::vec(any::<u8>(), 0..100), more in "[&%a=]{0,9}") {
            let mut encoded = vec![0; percent::encoded_len(&plain)];
            percent::encode(&plain, &mut encoded);
            let len = encoded.len();
            encoded.extend_from_slice(more.as_bytes());
            prop_assert_eq!(encoded_prefix_len(&encoded, &plain), Some(len));
        }

        #[test]
        fn what_is_recognised_decodes_once_to_the_resource(
            plain in "[a%2F/& +]{0,20}", encoded in "[a%2F/& +]{0,20}",
        ) {
            if let Some(len) = encoded_prefix_len(encoded.as_bytes(), plain.as_bytes()) {
                prop_assert!(percent::decode(encoded.bytes().take(len)).eq(plain.bytes()), "{encoded} {plain}");
            }
        }

        #[test]
        fn recognised_tokens_parse_alike(device in "[a-z%&/ ]{1,12}", expiry in any::<u64>(), raw in any::<bool>()) {
            let mut encoded = vec![0; 3 * device.len()];
            let len = percent::encode(device.as_bytes(), &mut encoded).unwrap();
            let sr = if raw { device.clone() } else { String::from_utf8(encoded[..len].to_vec()).unwrap() };
            let sig = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%3D";
            let token = format!("SharedAccessSignature sr={sr}&sig={sig}&se={expiry}");
            let canonical = Canonical::recognise(&token, &device);
            prop_assert!(raw || canonical.is_some());
            if let Some(canonical) = canonical {
                let parsed = crate::ParsedToken::parse(&token).unwrap();
                prop_assert_eq!(canonical.sr, parsed.raw_resource.as_bytes());
                prop_assert_eq!(canonical.expiry_unix_secs, parsed.expiry.unix_secs());
                prop_assert_eq!(canonical.sig, sig.as_bytes());
            }
        }
    }

    #[test]
    fn other_forms_are_left_to_the_parser() {
        for token in [
            "",
            "SharedAccessSignature sr=h&se=7&sig=x",
            "SharedAccessSignature sr=h&sig=x&se=7&skn=p",
            "SharedAccessSignature sr=h&sig=x&se=07",
            "SharedAccessSignature sr=H&sig=x&se=7",
            "sharedAccessSignature sr=h&sig=x&se=7",
        ] {
            assert!(Canonical::recognise(token, "h").is_none(), "{token}");
        }
        assert!(Canonical::recognise("SharedAccessSignature sr=&sig=x&se=7", "").is_none());
    }
}
