//! The hub's time, from the `Date` header of its HTTPS end (RFC 9110 §6.6.1).

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use super::dial::DialError;
use super::tls::TlsError;

/// Longest head of an answer that is read, in bytes.
const HEAD_LEN_MAX: usize = 16 * 1024;

/// Asks over an encrypted stream. Whatever the status is, the header counts.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, host: &str) -> Result<u64, AskError> {
    let version = env!("CARGO_PKG_VERSION");
    let request = format!(
        "HEAD / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: twinkey-agent/{version}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    let mut chunk = [0; 2_048];
    while !is_whole(&head) && head.len() < HEAD_LEN_MAX {
        let count = match stream.read(&mut chunk).await {
            Ok(count) => count,
            // A server that hangs up without TLS's goodbye may have said enough.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            break;
        }
        head.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
    date_in(&head).ok_or(AskError::NoDate)
}

fn is_whole(head: &[u8]) -> bool {
    head.windows(4).any(|end| end == b"\r\n\r\n")
}

/// The `Date` of an answer's head, in Unix seconds.
pub fn date_in(head: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    if !lines.next()?.starts_with("HTTP/1.") {
        return None;
    }
    let value = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("date"))?
        .1;
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Why the hub's time is not known.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There was no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error("the connection broke before the hub said what time it is")]
    Io(#[from] io::Error),
    /// The answer took too long.
    #[error("the hub did not say what time it is within {} s", after.as_secs())]
    Timeout {
        /// The bound.
        after: Duration,
    },
    /// The answer has no readable `Date`.
    #[error("the answer names no date: check `https_port` in section [hub]")]
    NoDate,
    /// The certificates are not valid at the time that the answer names.
    #[error("the hub names a time at which its certificate is not valid; it is not believed")]
    Contradiction {
        /// That time, in Unix seconds.
        unix_secs: u64,
    },
    /// TLS can't be set up.
    #[error("the question can't be put")]
    Setup(#[source] TlsError),
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 404 Not Found\r\nServer: x\r\ndate:  Fri, 20 Nov 2026 10:00:00 GMT\r\nContent-Length: 0\r\n\r\n";

    #[test]
    fn the_date_is_read_from_any_answer() {
        assert_eq!(date_in(HEAD.as_bytes()), Some(1_795_168_800));
    }

    #[test]
    fn answers_without_a_readable_date_give_none() {
        for head in [
            "",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nDate: yesterday\r\n\r\n",
            "HTTP/1.1 200 OK\r\nDate: Fri, 20 Nov 1026 10:00:00 GMT\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nDate: Fri, 20 Nov 2026 10:00:00 GMT\r\n",
            "SSH-2.0-x\r\nDate: Fri, 20 Nov 2026 10:00:00 GMT\r\n\r\n",
        ] {
            assert_eq!(date_in(head.as_bytes()), None, "{head:?}");
        }
    }

    #[tokio::test]
    async fn an_endless_answer_is_not_read_to_its_end() {
        let (mut ours, mut theirs) = tokio::io::duplex(1_024);
        let endless = tokio::spawn(async move { while theirs.write_all(&[b'x'; 1_024]).await.is_ok() {} });
        assert!(matches!(ask(&mut ours, "hub.example").await, Err(AskError::NoDate)));
        drop(ours);
        endless.await.unwrap();
    }
}
