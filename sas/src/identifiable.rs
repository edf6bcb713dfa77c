//! Keys that carry a mark: a signature for secret scanners and a checksum that says what the key is for.
//!
//! Azure makes its IoT keys this way (microsoft/security-utilities, `IdentifiableSecrets` and
//! `AzureIotDeviceIdentifiableKey`): 32 bytes, that is 44 characters of base64, of which 33 to 36 read `AIoT`, and whose
//! last four bytes are the Marvin32 checksum of the first 28 under a seed that depends on the purpose. So a key
//! that was cut, mixed up or mistyped is found before it does harm, and so is a hub's master key on its way to a
//! gateway. A key without the mark is a customer's own, and nothing is wrong with it.

use crate::key::Key;

/// Length in bytes of a marked key.
const MARKED_LEN: usize = 32;

/// Bytes that the checksum covers.
const CHECKED_LEN: usize = 28;

/// Bytes 24 to 27 as `AIoT` and one digit of `A` to `P` make them. The first six bits belong to the digit before.
const MARK: [u8; 4] = [0x00, 0x02, 0x28, 0x4c];

/// The bits of those bytes which the mark fixes.
const MARK_MASK: [u8; 4] = [0x03, 0xff, 0xff, 0xff];

/// What a marked key is for. The checksum's seed depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A shared access policy of a hub: a master key, which has no business on a device.
    HubPolicy,
    /// An enrolment of the Device Provisioning Service.
    Provisioning,
    /// A device or module.
    Device,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::HubPolicy, Self::Provisioning, Self::Device];

    /// Eight ASCII characters read as a big-endian number (microsoft/security-utilities).
    const fn seed(self) -> u64 {
        u64::from_be_bytes(match self {
            Self::HubPolicy => *b"IoTHub00",
            Self::Provisioning => *b"DpsKey00",
            Self::Device => *b"Device00",
        })
    }
}

/// What a key says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// No mark: somebody's own key.
    Absent,
    /// Marked, and the checksum is that of this purpose.
    Valid(Purpose),
    /// Marked, and the checksum is that of no purpose: the key was damaged on its way.
    Corrupt,
}

/// Reads a key's mark. Of random keys, one in 2^26 looks marked and corrupt.
pub fn inspect(key: &Key) -> Mark {
    let Some((checked, checksum)) = split(key.expose()) else {
        return Mark::Absent;
    };
    let marked = checked.last_chunk::<4>().is_some_and(|bytes| {
        bytes.iter().zip(MARK_MASK).zip(MARK).all(|((byte, mask), mark)| byte & mask == mark)
    });
    if !marked {
        return Mark::Absent;
    }
    Purpose::ALL
        .into_iter()
        .find(|purpose| marvin32(checked, purpose.seed()).to_le_bytes() == *checksum)
        .map_or(Mark::Corrupt, Mark::Valid)
}

/// Makes a marked key of 32 random bytes: the mark and the checksum take the place of 58 bits, the other 198 stay.
/// The caller wipes its own copy of the bytes.
pub fn stamp(random: &[u8; MARKED_LEN], purpose: Purpose) -> Key {
    let mut bytes = zeroize::Zeroizing::new(*random);
    let (checked, checksum) = bytes.split_at_mut(CHECKED_LEN);
    if let Some(place) = checked.last_chunk_mut::<4>() {
        for ((byte, mask), mark) in place.iter_mut().zip(MARK_MASK).zip(MARK) {
            *byte = *byte & !mask | mark;
        }
    }
    checksum.copy_from_slice(&marvin32(checked, purpose.seed()).to_le_bytes());
    Key::from_checked(bytes.as_slice())
}

/// The checked bytes and the checksum, if the length is right.
fn split(bytes: &[u8]) -> Option<(&[u8; CHECKED_LEN], &[u8; 4])> {
    let (checked, checksum) = bytes.split_first_chunk::<CHECKED_LEN>()?;
    Some((checked, checksum.try_into().ok()?))
}

/// Marvin32 (.NET's randomized string hash, dotnet/runtime `Marvin.cs`) over whole 32-bit words.
fn marvin32(words: &[u8], seed: u64) -> u32 {
    fn mix((p0, p1): (u32, u32)) -> (u32, u32) {
        let (p0, p1) = (p0, p1 ^ p0);
        let p0 = p0.rotate_left(20).wrapping_add(p1);
        let p1 = p1.rotate_left(9) ^ p0;
        let p0 = p0.rotate_left(27).wrapping_add(p1);
        (p0, p1.rotate_left(19))
    }
    let mut state = (seed as u32, (seed >> 32) as u32);
    for word in words.chunks_exact(4) {
        let word = word.first_chunk::<4>().copied().map_or(0, u32::from_le_bytes);
        state = mix((state.0.wrapping_add(word), state.1));
    }
    // The end mark of an input without odd bytes.
    let (p0, p1) = mix(mix((state.0.wrapping_add(0x80), state.1)));
    p0 ^ p1
}

#[cfg(test)]
mod tests {
    use super::{CHECKED_LEN, MARKED_LEN, Mark, Purpose, inspect, stamp};
    use crate::Key;
    use proptest::prelude::*;

    #[test]
    fn microsofts_own_test_key_is_a_hub_policys() {
        let key = Key::from_base64("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaAIoTOumzco=").unwrap();
        assert_eq!(inspect(&key), Mark::Valid(Purpose::HubPolicy));
    }

    #[test]
    fn stamp_makes_the_known_device_key() {
        let mut counting = [0; MARKED_LEN];
        for (byte, i) in counting.iter_mut().zip(0..24) {
            *byte = i;
        }
        let key = stamp(&counting, Purpose::Device);
        assert_eq!(key.expose_base64(&mut [0; 88]), "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXAAIoTOzOFgY=");
        assert_eq!(inspect(&key), Mark::Valid(Purpose::Device));
    }

    #[test]
    fn other_keys_have_no_mark() {
        for len in 16..=64 {
            assert_eq!(inspect(&Key::from_bytes(&[0x5a; 64][..len]).unwrap()), Mark::Absent);
        }
    }

    proptest! {
        #[test]
        fn stamped_key_keeps_its_purpose_and_shows_every_damage(
            random in any::<[u8; MARKED_LEN]>(), purpose in 0..3usize, bit in 0..MARKED_LEN * 8,
        ) {
            let purpose = Purpose::ALL[purpose];
            let key = stamp(&random, purpose);
            prop_assert_eq!(inspect(&key), Mark::Valid(purpose));
            let mut bytes = [0; MARKED_LEN];
            bytes.copy_from_slice(key.expose());
            bytes[bit / 8] ^= 1 << (bit % 8);
            let in_mark = (24..CHECKED_LEN).contains(&(bit / 8)) && (bit / 8 > 24 || bit % 8 < 2);
            prop_assert_eq!(inspect(&Key::from_bytes(&bytes).unwrap()), if in_mark { Mark::Absent } else { Mark::Corrupt });
        }
    }
}
