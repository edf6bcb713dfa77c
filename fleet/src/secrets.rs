//! Secrets that come in from files, stdin and the environment, and the one file in which a secret goes out.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use twinkey_contract::connection_string::ServiceConnectionString;
use twinkey_sas::Key;
use zeroize::Zeroizing;

use crate::cli::HubArgs;
use crate::failure::{Failure, chain};
use crate::files;
use crate::hub::{CaFile, Hub};
use crate::output;

/// The variable that az's users have.
pub(crate) const LOGIN_VARIABLE: &str = "IOTHUB_CONNECTION_STRING";
/// Longest secret that is read, in bytes: a connection string has about 200, a token at most 1536, hub.json about 1500.
const SECRET_LEN_MAX: u64 = 8 * 1024;

/// The hub that flags or environment name.
pub(crate) fn log_in(args: &HubArgs) -> Result<Hub, Failure> {
    let (source, text) = match &args.login {
        Some(path) => (format!("--login {}", path.display()), read_file("--login", path)?),
        None => match std::env::var(LOGIN_VARIABLE) {
            Ok(text) => (LOGIN_VARIABLE.to_owned(), Zeroizing::new(text)),
            Err(std::env::VarError::NotPresent) => {
                return Err(Failure::usage("no login: the hub and its key are not known").next(format!(
                    "give --login FILE with the hub's service connection string, or set {LOGIN_VARIABLE}"
                )));
            }
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Failure::usage(format!("{LOGIN_VARIABLE} is no text")));
            }
        },
    };
    let Login { connection_string, ca_file } = Login::read(&source, text)?;
    let service = ServiceConnectionString::parse(connection_string.trim()).map_err(|e| {
        Failure::usage(format!("{source}: {}", chain(&e)))
            .next("it holds HostName=…;SharedAccessKeyName=…;SharedAccessKey=… of a hub's policy, such as iothubowner")
    })?;
    // Paths in a file are meant from where the file is.
    let beside = args.login.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let of_login = ca_file.map(|path| beside.join(path));
    let named_by = format!("caFile of {source}:");
    let of_login = of_login.as_deref().map(|path| CaFile { path, named_by: &named_by });
    let of_flag = args.ca_file.as_deref().map(|path| CaFile { path, named_by: "--ca-file" });
    Hub::new(&service, of_flag.or(of_login))
}

/// The key in a file, or on stdin for `-`.
pub(crate) fn read_key(path: &Path) -> Result<Key, Failure> {
    let is_stdin = path == Path::new("-");
    let text = if is_stdin { read_stdin("key")? } else { read_file("--key-file", path)? };
    Key::from_base64(text.trim()).map_err(|e| {
        Failure::usage(format!("--key-file {}: {e}", path.display()))
            .next("give the key alone, in base64, as the hub shows it")
    })
}

/// A short secret on stdin.
pub(crate) fn read_stdin(what: &str) -> Result<Zeroizing<String>, Failure> {
    read_bounded(io::stdin().lock(), what)
}

/// Writes `secret` to a new file that only its owner can read, and that is there as a whole or not
/// at all.
pub(crate) fn write_new_file(path: &Path, secret: &str) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::failed(format!("write {}: {e}", path.display()));
    files::create_private(path, secret.as_bytes()).map_err(|e| {
        let exists = e.kind() == io::ErrorKind::AlreadyExists;
        let failure = fail(e);
        if exists {
            failure.next("remove it, or choose another name: nothing is overwritten")
        } else {
            failure
        }
    })
}

/// What a login file holds: a connection string, or the JSON that the local hub writes.
struct Login {
    connection_string: Zeroizing<String>,
    ca_file: Option<PathBuf>,
}

impl Login {
    fn read(source: &str, text: Zeroizing<String>) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct HubJson {
            service_connection_string: String,
            ca_file: Option<PathBuf>,
        }
        if !text.trim_start().starts_with('{') {
            return Ok(Self { connection_string: text, ca_file: None });
        }
        // The cause stays unsaid: it could quote the secret.
        let json: HubJson =
            serde_json::from_str(&text).map_err(|_| Failure::usage(format!("{source}: is no hub.json")))?;
        Ok(Self { connection_string: Zeroizing::new(json.service_connection_string), ca_file: json.ca_file })
    }
}

/// Reads the file that `flag` names.
fn read_file(flag: &str, path: &Path) -> Result<Zeroizing<String>, Failure> {
    if is_like_secret(path) && !path.exists() {
        return Err(Failure::usage(format!(
            "{flag} takes the name of a file, and there is no such file; what was given looks like a secret and is not \
             repeated here"
        ))
        .next(
            "write the secret to a file that only you can read (umask 077 or chmod 600) and give the file's name; if it \
             was one, shell history and process list have seen it: renew that key",
        ));
    }
    let fail = |e: io::Error| {
        Failure::usage(format!("read {}: {e}", path.display()))
            .next(format!("{flag} takes the name of a file that is there and that you may read"))
    };
    let file = File::open(path).map_err(fail)?;
    warn_if_exposed(path, &file.metadata().map_err(fail)?);
    read_bounded(file, &path.display().to_string())
}

/// Whether somebody has given a connection string, a token or a key in place of a file's name.
fn is_like_secret(path: &Path) -> bool {
    /// Shortest key that a hub takes, 16 bytes, in base64 without padding.
    const KEY_CHARS_MIN: usize = 22;
    let text = path.as_os_str().to_string_lossy();
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/');
    text.contains('=')
        || text.to_ascii_lowercase().contains("sharedaccess")
        || (text.len() >= KEY_CHARS_MIN && text.chars().all(is_base64))
}

fn read_bounded(source: impl Read, what: &str) -> Result<Zeroizing<String>, Failure> {
    // Reserved at once: a growing buffer would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LEN_MAX as usize + 1));
    let read = source.take(SECRET_LEN_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::usage(format!("read {what}: {e}")))?;
    if bytes.len() as u64 > SECRET_LEN_MAX {
        return Err(Failure::usage(format!(
            "{what} is longer than {SECRET_LEN_MAX} bytes, which no secret here is"
        )));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::usage(format!("{what} is no text")))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn warn_if_exposed(path: &Path, metadata: &fs::Metadata) {
    if let Some(warning) = exposure(path, metadata) {
        output::warn(&warning);
    }
}

/// `metadata` is that of the open file. The advice names the file itself: chmod follows links, and
/// a person should see where.
fn exposure(path: &Path, metadata: &fs::Metadata) -> Option<String> {
    let mode = metadata.permissions().mode() & 0o777;
    if !metadata.is_file() || mode & 0o077 == 0 {
        return None;
    }
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Some(format!(
        "{} holds a secret and others may read it (mode {mode:03o}): run `chmod 600 {}`, and renew the secret if anybody else uses this machine",
        path.display(),
        real.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_others_may_read_is_named_by_its_own_name_and_not_by_that_of_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (file, link) = (dir.join("file"), dir.join("link"));
        fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let warning = exposure(&link, &fs::metadata(&link).unwrap()).unwrap();
        assert!(warning.contains(&format!("`chmod 600 {}`", file.display())), "{warning}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(exposure(&link, &fs::metadata(&link).unwrap()), None);
    }
}
