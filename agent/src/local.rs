//! The Unix socket through which programs on the gateway use the agent's connection: they publish telemetry and ask
//! for status and tokens. One JSON object a line, in and out; answers carry the `id` of their request and may come in
//! another order.
//!
//! ```text
//! → {"request":"publish","id":7,"body":"{\"n\":1}","properties":{"kind":"reading"}}
//! ← {"id":7,"ok":true}                      once the hub has acknowledged it
//! → {"request":"status","id":8}
//! ← {"id":8,"ok":true,"status":{…}}
//! → {"request":"token","id":9,"ttlSecs":600}
//! ← {"id":9,"ok":true,"token":"…"}
//! → {"request":"replace","id":10,"connectionString":"…","slot":"primary"}
//! ← {"id":10,"ok":true,"key":"5f1d0c3b9a7e2466"}   the key's fingerprint: it is stored, and tried next
//! ```
//!
//! Whoever may open the socket may speak for the device: its mode is 0660.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::error::Category;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use twinkey_rotation::KeySlot;
use twinkey_sas::Key;
use zeroize::Zeroizing;

use crate::chain::Chain;
use crate::hub::outbox::{MESSAGE_LEN_MAX, Message};
use crate::hub::topics;
use crate::keyring::Registration;
use crate::provision;

/// Programs that may be connected at once.
const CLIENTS_MAX: usize = 64;
/// Publishes that one program may have outstanding; beyond that its lines wait in the socket.
const OUTSTANDING_MAX: usize = 1_000;
/// Longest line, in bytes: the largest message in base64, and its properties.
const LINE_LEN_MAX: usize = 512 * 1024;
/// Requests that may wait for the driver.
pub const REQUESTS_MAX: usize = 256;
/// How long an answer may take; a key that is brought is stored before it is answered, and disks can be slow.
const ANSWER_MAX: std::time::Duration = std::time::Duration::from_secs(30);
/// Lifetime of a token when the request names none, in seconds.
const TOKEN_TTL_SECS: u64 = 3_600;

/// What a program asks of the driver.
#[derive(Debug)]
pub enum Request {
    /// To send a message; its sender is told when the hub has acknowledged it.
    Publish {
        /// The message.
        message: Message,
        /// Told whether the outbox has taken it.
        taken: oneshot::Sender<Result<(), crate::hub::outbox::Full>>,
    },
    /// The status document.
    Status(oneshot::Sender<Value>),
    /// To try a key that a person has brought.
    Replace(Replacement),
    /// A token of the device's.
    Token {
        /// How long it is to be good for, in seconds.
        ttl_secs: u64,
        /// For which resource; `None` for the device itself.
        resource: Option<String>,
        /// The token, or why there is none.
        answer: oneshot::Sender<Result<Zeroizing<String>, String>>,
    },
}

/// A key that a person has brought.
#[derive(Debug)]
pub struct Replacement {
    /// Whose key it is.
    pub registration: Registration,
    /// The slot in the registry that it comes from.
    pub slot: KeySlot,
    /// The key.
    pub key: Key,
    /// The key's fingerprint once it is stored, or why it is not.
    pub answer: oneshot::Sender<Result<String, String>>,
}

#[derive(Deserialize)]
#[serde(tag = "request", rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    Publish {
        #[serde(default)]
        id: Value,
        body: Option<String>,
        #[serde(rename = "bodyBase64")]
        body_base64: Option<String>,
        #[serde(default)]
        properties: BTreeMap<String, String>,
    },
    Status {
        #[serde(default)]
        id: Value,
    },
    Replace {
        #[serde(default)]
        id: Value,
        #[serde(rename = "connectionString")]
        connection_string: Zeroizing<String>,
        #[serde(default)]
        slot: SlotName,
    },
    Token {
        #[serde(default)]
        id: Value,
        #[serde(rename = "ttlSecs")]
        ttl_secs: Option<u64>,
        resource: Option<String>,
    },
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SlotName {
    #[default]
    Primary,
    Secondary,
}

#[derive(Serialize, Default)]
struct Answer {
    id: Value,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on the socket {}: check [local] socket and its directory", path.display())]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

/// Opens the socket. One that an earlier process left behind is replaced; the state directory's lock has already
/// made sure that no other agent is running on the same key ring.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(failed(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process listens on it",
                )));
            }
            std::fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) => {
            return Err(failed(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// Serves programs until the driver goes away.
pub async fn serve(listener: UnixListener, registration: Registration, driver: mpsc::Sender<Request>) {
    let mut clients = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if clients.len() < CLIENTS_MAX => clients.push(serve_client(stream, &registration, &driver)),
                Ok((stream, _)) => turn_away(&stream),
                // No descriptor is free: let one of the present programs go first.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            },
            Some(()) = clients.next(), if !clients.is_empty() => {}
            () = driver.closed() => return,
        }
    }
}

/// Says so at once, so that whoever looks for the agent does not take it for dead.
fn turn_away(stream: &UnixStream) {
    let answer =
        failed(Value::Null, format!("{CLIENTS_MAX} programs are connected already: close some first"));
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    text.push(b'\n');
    // A new socket has room for one line; one that has not is not waited for.
    let _ = stream.try_write(&text);
}

async fn serve_client(stream: UnixStream, registration: &Registration, driver: &mpsc::Sender<Request>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut outstanding = FuturesUnordered::new();
    let mut is_open = true;
    while is_open || !outstanding.is_empty() {
        tokio::select! {
            read = read_line(&mut reader, &mut line), if is_open && outstanding.len() < OUTSTANDING_MAX => match read {
                Ok(true) => {
                    // It may hold a key.
                    let text = Zeroizing::new(std::mem::take(&mut line));
                    outstanding.push(answer(text, registration, driver));
                }
                Ok(false) => is_open = false,
                Err(error) => {
                    is_open = false;
                    // Where the next line begins can't be known any more.
                    if write(&mut writer, &failed(Value::Null, error.to_string())).await.is_err() {
                        return;
                    }
                }
            },
            Some(answer) = outstanding.next(), if !outstanding.is_empty() => {
                if write(&mut writer, &answer).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn write(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut text = Zeroizing::new(serde_json::to_vec(answer).unwrap_or_default());
    text.push(b'\n');
    writer.write_all(&text).await
}

/// Reads on until `line` is whole; cancel-safe, since what was read stays in `line`. False at the end.
async fn read_line<R: tokio::io::AsyncBufRead + Unpin>(
    reader: &mut R,
    line: &mut Vec<u8>,
) -> io::Result<bool> {
    let room = (LINE_LEN_MAX + 1).saturating_sub(line.len());
    (&mut *reader).take(room as u64).read_until(b'\n', line).await?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(true);
    }
    if line.len() > LINE_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
    }
    Ok(false)
}

async fn answer(
    text: Zeroizing<Vec<u8>>,
    registration: &Registration,
    driver: &mpsc::Sender<Request>,
) -> Answer {
    let gone = || "the agent is stopping".to_owned();
    match serde_json::from_slice(&text) {
        // Where, but not what: serde's own words quote values, and a line may hold a key.
        Err(error) => {
            let what = match error.classify() {
                Category::Syntax | Category::Eof | Category::Io => "it is not one JSON object",
                Category::Data => "a field is unknown, missing or of the wrong type",
            };
            failed(Value::Null, format!("not a request: {what} (column {})", error.column()))
        }
        Ok(Line::Publish { id, body, body_base64, properties }) => {
            let payload = match (body, body_base64) {
                (Some(body), None) => Bytes::from(body),
                (None, Some(body)) => match STANDARD.decode(body) {
                    Ok(body) => Bytes::from(body),
                    Err(_) => return failed(id, "bodyBase64 is not base64".to_owned()),
                },
                (Some(_), Some(_)) | (None, None) => {
                    return failed(id, "give either body or bodyBase64".to_owned());
                }
            };
            let pairs = properties.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let topic = topics::telemetry(&registration.identity, pairs);
            if topic.len() > usize::from(u16::MAX) || topic.len() + payload.len() > MESSAGE_LEN_MAX {
                return failed(
                    id,
                    format!("the message is larger than the {MESSAGE_LEN_MAX} bytes that the hub takes"),
                );
            }
            let (acknowledged, acknowledgement) = oneshot::channel();
            let (taken, is_taken) = oneshot::channel();
            let request = Request::Publish { message: Message { topic, payload, acknowledged }, taken };
            if driver.send(request).await.is_err() {
                return failed(id, gone());
            }
            match is_taken.await {
                Ok(Ok(())) => {}
                Ok(Err(full)) => return failed(id, full.to_string()),
                Err(_) => return failed(id, gone()),
            }
            match acknowledgement.await {
                Ok(()) => Answer { id, ok: true, ..Answer::default() },
                Err(_) => failed(id, gone()),
            }
        }
        Ok(Line::Status { id }) => {
            let (sender, receiver) = oneshot::channel();
            match (driver.send(Request::Status(sender)).await, receiver.await) {
                (Ok(()), Ok(status)) => Answer { id, ok: true, status: Some(status), ..Answer::default() },
                (Ok(()) | Err(_), _) => failed(id, gone()),
            }
        }
        Ok(Line::Replace { id, connection_string, slot }) => {
            let (registration, key) = match provision::parse(&connection_string) {
                Ok(parsed) => parsed,
                Err(error) => return failed(id, Chain(&error).to_string()),
            };
            let slot = match slot {
                SlotName::Primary => KeySlot::Primary,
                SlotName::Secondary => KeySlot::Secondary,
            };
            let (sender, receiver) = oneshot::channel();
            let replacement = Replacement { registration, slot, key, answer: sender };
            match (driver.send(Request::Replace(replacement)).await, receiver.await) {
                (Ok(()), Ok(Ok(key))) => Answer { id, ok: true, key: Some(key), ..Answer::default() },
                (Ok(()), Ok(Err(error))) => failed(id, error),
                (Ok(()) | Err(_), _) => failed(id, gone()),
            }
        }
        Ok(Line::Token { id, ttl_secs, resource }) => {
            let (sender, receiver) = oneshot::channel();
            let ttl_secs = ttl_secs.unwrap_or(TOKEN_TTL_SECS);
            let request = Request::Token { ttl_secs, resource, answer: sender };
            match (driver.send(request).await, receiver.await) {
                (Ok(()), Ok(Ok(token))) => Answer { id, ok: true, token: Some(token), ..Answer::default() },
                (Ok(()), Ok(Err(error))) => failed(id, error),
                (Ok(()) | Err(_), _) => failed(id, gone()),
            }
        }
    }
}

fn failed(id: Value, error: String) -> Answer {
    Answer { id, error: Some(error), ..Answer::default() }
}

/// Whether an agent listens on the socket. An error where that can't be known: one that this user may not open.
pub fn is_served(path: &Path) -> io::Result<bool> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The request to try a key. It holds the connection string, so it is wiped.
pub fn replace_request(connection_string: &str, slot: &str) -> Zeroizing<String> {
    let text = Zeroizing::new(serde_json::to_string(connection_string.trim()).unwrap_or_default());
    Zeroizing::new(format!(
        "{{\"request\":\"replace\",\"connectionString\":{},\"slot\":\"{slot}\"}}",
        text.as_str()
    ))
}

/// Asks a running agent; the answer is one JSON object.
pub fn ask(path: &Path, request: &Value) -> io::Result<Value> {
    ask_text(path, &request.to_string())
}

/// Asks a running agent with a line of JSON.
pub fn ask_text(path: &Path, request: &str) -> io::Result<Value> {
    use std::io::{BufRead as _, Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(request.as_bytes())?;
    stream.write_all(b"\n")?;
    let mut line = Zeroizing::new(String::new());
    std::io::BufReader::new(stream).take(LINE_LEN_MAX as u64).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::from)
}
