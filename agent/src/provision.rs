//! From a connection string to a key ring.

use std::io;
use std::path::{Path, PathBuf};

use twinkey_contract::connection_string::{ConnectionStringError, DeviceConnectionString};
use twinkey_contract::sealing::SealingKey;
use twinkey_rotation::{Brought, Input, KeySlot, Policy, State, step};
use twinkey_sas::Key;
use zeroize::Zeroizing;

use crate::keyring::{KeyRing, NameTaken, Registration};
use crate::regular_file::{self, Links};
use crate::store::{Files, Store, StoreError};

/// Names of systemd's credentials that may hold the first connection string; one that systemd-creds has encrypted must carry
/// a name of its own, as a unit can load either kind under one name but not both.
const CREDENTIALS: [&str; 2] = ["twinkey.connection-string", "twinkey.connection-string.encrypted"];
/// Longest connection string, in bytes: host, two names of 128 characters, a key of 88 and a gateway's name.
const TEXT_LEN_MAX: u64 = 4 * 1024;

/// Makes and stores a key ring in an empty state directory.
pub fn provision<F: Files>(
    store: &mut Store<F>,
    text: &str,
    slot: KeySlot,
) -> Result<KeyRing, ProvisionError> {
    if let Some(known) = store.load()? {
        return Err(ProvisionError::Exists { identity: known.key_ring.registration.identity.to_string() });
    }
    let (registration, key) = parse(text)?;
    let sealing_key = SealingKey::generate().map_err(|_| ProvisionError::Randomness)?;
    let key_ring = KeyRing::provision(registration, sealing_key, slot, key);
    store.save(&key_ring, &key_ring.ring)?;
    Ok(key_ring)
}

/// Adds a key to the key ring of an agent that is not running. The keys that are held stay; the agent tries this one right
/// after the active one when it starts.
pub fn replace<F: Files>(store: &mut Store<F>, text: &str, slot: KeySlot) -> Result<KeyRing, ProvisionError> {
    let Some(known) = store.load()? else {
        return provision(store, text, slot);
    };
    let mut key_ring = known.key_ring;
    let (registration, key) = parse(text)?;
    check_same_device(&key_ring.registration, &registration).map_err(ProvisionError::OtherDevice)?;
    let brought = Input::Brought(Brought { slot, key: key_ring.learn(key)? });
    // The machine itself takes it up, as it would when it runs.
    let (_, effects) = step(&Policy::DEFAULT, State::new(key_ring.ring), brought, 0);
    if let Some(ring) = effects.store {
        store.save(&key_ring, &ring)?;
        key_ring.ring = ring;
    }
    Ok(key_ring)
}

/// The parts of a device's connection string.
pub fn parse(text: &str) -> Result<(Registration, Key), ProvisionError> {
    let parsed = DeviceConnectionString::parse(text.trim())?;
    let registration = Registration {
        host_name: parsed.host_name,
        identity: parsed.identity,
        gateway_host_name: parsed.gateway_host_name,
    };
    Ok((registration, parsed.key))
}

/// A key replaces keys of the same device only.
pub(crate) fn check_same_device(known: &Registration, brought: &Registration) -> Result<(), String> {
    if known.host_name.eq_ignore_ascii_case(&brought.host_name) && known.identity == brought.identity {
        return Ok(());
    }
    Err(format!(
        "the key ring is that of {} at {}, and the connection string that of {} at {}: nothing was changed. To make this gateway another device, stop the agent, move the key-ring files away and run `twinkey-agent provision` without --replace",
        known.identity, known.host_name, brought.identity, brought.host_name
    ))
}

/// The file with the connection string among the credentials that systemd hands to a service in `directory`, its
/// `$CREDENTIALS_DIRECTORY` (systemd.exec(5), CREDENTIALS).
pub fn credential_in(directory: &Path) -> Option<PathBuf> {
    CREDENTIALS.iter().map(|name| directory.join(name)).find(|path| path.exists())
}

/// Reads a connection string from a file that a person has named.
pub fn read_file(path: &Path) -> Result<Zeroizing<String>, ProvisionError> {
    let names_a_file = !path.to_string_lossy().contains("SharedAccessKey");
    if !names_a_file {
        return Err(ProvisionError::NotAFile);
    }
    let unreadable = |source| ProvisionError::Unreadable { path: path.to_owned(), source };
    let (file, _) = regular_file::open(path, Links::Follow).map_err(unreadable)?;
    read(file).map_err(unreadable)
}

/// Reads a connection string to the end of the line.
pub fn read_line(source: impl io::BufRead) -> io::Result<Zeroizing<String>> {
    use io::BufRead as _;
    let mut text = Zeroizing::new(String::with_capacity(TEXT_LEN_MAX as usize + 1));
    source.take(TEXT_LEN_MAX + 1).read_line(&mut text)?;
    checked_length(text)
}

/// Reads a connection string to the end of `source`.
pub fn read(source: impl io::Read) -> io::Result<Zeroizing<String>> {
    use io::Read as _;
    // Room for all of it from the start, so that no copy is left behind by a growing buffer.
    let mut text = Zeroizing::new(String::with_capacity(TEXT_LEN_MAX as usize + 1));
    source.take(TEXT_LEN_MAX + 1).read_to_string(&mut text)?;
    checked_length(text)
}

fn checked_length(text: Zeroizing<String>) -> io::Result<Zeroizing<String>> {
    if text.len() as u64 > TEXT_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long for a connection string"));
    }
    Ok(text)
}

/// Why there is no key ring.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// There is one already.
    #[error(
        "there is a key ring for {identity} already, and it was left alone: give it another key with --replace, or, to make this gateway another device, stop the agent, move the key-ring files away and run this again"
    )]
    Exists {
        /// Whose it is.
        identity: String,
    },
    /// The connection string makes no sense.
    #[error("the connection string can't be used")]
    ConnectionString(#[from] ConnectionStringError),
    /// The file with the connection string can't be read.
    #[error("can't read the connection string from {}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The connection string stands where a file's name belongs. It is not quoted.
    #[error(
        "a connection string stands where the name of a file belongs: write it into a file of mode 0600 and name that"
    )]
    NotAFile,
    /// The key in the connection string can't be told from another one.
    #[error("the key in the connection string can't be used")]
    NameTaken(#[from] NameTaken),
    /// The connection string is another device's.
    #[error("{0}")]
    OtherDevice(String),
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers for the sealing key; try again")]
    Randomness,
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}
