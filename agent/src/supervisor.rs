//! What the agent tells systemd (sd_notify(3)): that it is up, how it is, and that its loop still turns.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::printable::printable;

/// Shortest heartbeat: a supervisor that wants to hear more often can't be pleased.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The agent is up: connected, or trying for long enough.
    Ready,
    /// One line for `systemctl status`.
    Status(String),
    /// The loop still turns.
    Alive,
    /// The configuration is being read again; [`Notice::Ready`] follows.
    Reloading,
    /// The end has begun.
    Stopping,
}

/// Whoever watches over the process.
pub struct Supervisor {
    tell: Box<dyn FnMut(&Notice) + Send>,
    /// How long the loop may be silent before the supervisor restarts the process.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// systemd, or nobody when the process was started by hand.
    pub fn systemd() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Self::none() };
        match systemd_socket(name.as_bytes()) {
            Ok(socket) => {
                let tell = move |notice: &Notice| tell_systemd(&socket, notice);
                Self::new(tell, sd_notify::watchdog_enabled())
            }
            Err(error) => {
                tracing::warn!(%error, "the socket that NOTIFY_SOCKET names can't be used: systemd is told nothing");
                Self::none()
            }
        }
    }

    /// Nobody.
    pub fn none() -> Self {
        Self::new(|_| {}, None)
    }

    /// `tell`, which expects to hear from us within `watchdog`.
    pub fn new(tell: impl FnMut(&Notice) + Send + 'static, watchdog: Option<Duration>) -> Self {
        Self { tell: Box::new(tell), watchdog }
    }

    /// Tells it.
    pub fn tell(&mut self, notice: &Notice) {
        (self.tell)(notice);
    }

    /// How often the loop says that it turns: twice in the time that it is given, as sd_watchdog_enabled(3) advises.
    pub fn heartbeat(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| (watchdog / 2).max(HEARTBEAT_MIN))
    }
}

/// A path, or an abstract name behind an `@`. The socket never blocks: a supervisor that stops reading must not stop us,
/// too, so what finds no room is lost.
fn systemd_socket(name: &[u8]) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

fn tell_systemd(socket: &UnixDatagram, notice: &Notice) {
    let text = match notice {
        Notice::Ready => NotifyState::Ready.to_string(),
        // A line break would begin another assignment.
        Notice::Status(text) => NotifyState::Status(&printable(text)).to_string(),
        Notice::Alive => NotifyState::Watchdog.to_string(),
        // sd-notify's own reading of the clock overflows on 32 bits, 36 minutes after the board has started.
        Notice::Reloading => {
            let now = NotifyState::MonotonicUsec(crate::clock::monotonic_usecs());
            format!("{}\n{now}", NotifyState::Reloading)
        }
        Notice::Stopping => NotifyState::Stopping.to_string(),
    };
    if let Err(error) = socket.send(text.as_bytes()) {
        tracing::debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_that_stops_reading_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let reader = UnixDatagram::bind(&path).unwrap();
        let socket = systemd_socket(path.as_os_str().as_bytes()).unwrap();
        for _ in 0..10_000 {
            tell_systemd(&socket, &Notice::Alive);
        }
        let mut bytes = [0; 64];
        let len = reader.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"WATCHDOG=1");
    }

    #[test]
    fn an_abstract_name_is_a_socket_too() {
        let name = format!("twinkey-test-{}", std::process::id());
        let reader = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let socket = systemd_socket(format!("@{name}").as_bytes()).unwrap();
        tell_systemd(&socket, &Notice::Status("a\nREADY=1".to_owned()));
        let mut bytes = [0; 64];
        let len = reader.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"STATUS=a READY=1");
    }
}
