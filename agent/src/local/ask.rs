//! The other end of the socket: what the agent's own command asks a running agent.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

/// How long an answer may take; a key that is brought is stored before it is answered, and disks can be slow.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Longest answer, in bytes: a status document takes a few thousand.
const ANSWER_LEN_MAX: u64 = 512 * 1024;

/// Whether an agent listens on the socket. An error where that can't be known: one that this user may not open.
pub fn is_served(path: &Path) -> io::Result<bool> {
    match UnixStream::connect(path) {
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
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    // An agent that turns a program away says why, and hangs up without reading.
    let sent = stream.write_all(request.as_bytes()).and_then(|()| stream.write_all(b"\n"));
    let mut line = Zeroizing::new(String::new());
    BufReader::new(stream).take(ANSWER_LEN_MAX).read_line(&mut line)?;
    if line.is_empty() {
        sent?;
    }
    serde_json::from_str(&line).map_err(io::Error::from)
}
