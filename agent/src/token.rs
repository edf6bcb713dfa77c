//! Tokens: the password of the agent's own connections, and short-lived ones for programs on this machine.

use twinkey_contract::Identity;
use twinkey_rotation::KeyName;
use twinkey_sas::{Expiry, Key, ResourceUri, Signer, Token};
use zeroize::Zeroizing;

use crate::hub::session::Credentials;
use crate::hub::topics;
use crate::keyring::{KeyRing, Registration};

/// Longest life of a token that a program on this machine may ask for, in seconds: an hour, as long as the agent's own by
/// default. A token outlives the program that asked for it and, for a while, the key.
const PROGRAM_TTL_SECS_MAX: u64 = 3_600;

/// What CONNECT says with the key called `key`, and until when the hub lets it count.
pub fn credentials(
    key_ring: &KeyRing,
    key: KeyName,
    lifetime_secs: u64,
    now_unix_secs: u64,
) -> Result<(Credentials, Expiry), &'static str> {
    let Registration { host_name, identity, .. } = &key_ring.registration;
    let key = key_ring.key(key).ok_or("the key is not known")?;
    let uri =
        ResourceUri::from_plain(&resource_of(host_name, identity)).map_err(|_| "the names are too long")?;
    let expiry = Expiry::after(now_unix_secs, lifetime_secs).ok_or("the clock is out of range")?;
    let password = sign(key, &uri, expiry)?;
    let user_name = topics::user_name(host_name, identity);
    Ok((Credentials { identity: identity.clone(), user_name, password }, expiry))
}

/// A token for a program: for the device itself.
pub fn for_program(
    key: &Key,
    registration: &Registration,
    ttl_secs: u64,
    now_unix_secs: u64,
) -> Result<Zeroizing<String>, String> {
    if !(1..=PROGRAM_TTL_SECS_MAX).contains(&ttl_secs) {
        return Err(format!("a token's life must be between 1 and {PROGRAM_TTL_SECS_MAX} seconds"));
    }
    let resource = resource_of(&registration.host_name, &registration.identity);
    let uri = ResourceUri::from_plain(&resource).map_err(|error| error.to_string())?;
    let expiry = Expiry::after(now_unix_secs, ttl_secs).ok_or("the clock is out of range")?;
    Ok(sign(key, &uri, expiry)?)
}

fn sign(key: &Key, uri: &ResourceUri, expiry: Expiry) -> Result<Zeroizing<String>, &'static str> {
    let mut buffer = [0; Token::MAX_LEN];
    let token = Signer::new(key).sign(uri, expiry, &mut buffer).map_err(|_| "the token does not fit")?;
    Ok(Zeroizing::new(token.expose().to_owned()))
}

fn resource_of(host_name: &str, identity: &Identity) -> String {
    match &identity.module_id {
        None => format!("{host_name}/devices/{}", identity.device_id),
        Some(module_id) => format!("{host_name}/devices/{}/modules/{module_id}", identity.device_id),
    }
}
