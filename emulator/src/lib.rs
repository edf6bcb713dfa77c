//! A local Azure IoT Hub, as a library: MQTT 3.1.1 over TLS and over WebSocket for devices, the registry's REST
//! interface for services, and faults on demand for tests.
//!
//! It behaves as the real hub is documented or has been observed to behave; where there is no evidence, the behaviour
//! is a setting whose default is the likelier one. It shares no code with Twinkey's agent: above all it verifies
//! tokens by itself, so that both ends can't be wrong together.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = twinkey_emulator::Options { data_dir: "hub".into(), ..Default::default() };
//! let emulator = twinkey_emulator::start(options).await?;
//! println!("MQTT over TLS on {}", emulator.ready().mqtts);
//! emulator.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Faults
//!
//! `GET` and `POST /$emulator/faults` read and merge these fields; an unknown field is refused by name.
//!
//! | Field | Default | Meaning |
//! |---|---|---|
//! | `refuseNext` | `[]` | entries `{"identity", "count", "code"}`: the next CONNECTs to refuse; no identity means any, a count of 0 clears |
//! | `propagationDelayMs` | 0 | time after a key change until CONNECT knows the new key |
//! | `propagationDelayMsByIdentity` | `{}` | the same for single identities |
//! | `previousKey` | `dies` | whether a replaced key `lives` or `dies` during that time |
//! | `onKeyChange` | `keep` | whether a connection whose key left the registry is kept, or `drop`ped |
//! | `onRefusedConnect` | `keep` | whether a refused CONNECT lets the live connection be, or `drop`s it |
//! | `twinAnswers` | `always` | whether a twin request is answered `always`, or only to who has `subscribed` to answers |
//! | `connackDelayMs` | 0 | wait before a CONNECT is looked at |
//! | `muteConnack` | `false` | CONNECT gets no answer |
//! | `stalled` | `[]` | entries `{"identity", "newToo"}`: connections that stay open while nothing is read or written, until the list is changed, or more than 128 messages wait for one; no identity means every one, `newToo` those that are made later too |
//! | `latencyMs` | 0 | every answer, and every message to a device, is so late; their order stays |
//! | `latencyJitterMs` | 0 | and a random time up to this later |
//! | `failRequests` | `[]` | entries `{"method", "path", "code", "done", "count", "probability", "retryAfterSecs"}`: see below |
//! | `failTwinRequests` | `[]` | entries `{"identity", "request", "code", "done", "count", "probability"}`: twin requests over MQTT that fail; `request` is `read` or `report` |
//! | `throttles` | `null` | `{"tier", "units", "burstSecs", "queueSecs", "retryAfter", "onConnect", "bulk"}`: the limits of `S1`, `S2` or `S3`; see below |
//! | `clockOffsetSecs` | 0 | how far the hub's wall clock is ahead: tokens' expiry, the header `Date`, every time that it writes |
//! | `seed` | random | what is random follows from it; setting it begins anew |
//!
//! `DELETE /$emulator/faults` ends them all. A list that is posted replaces the one before, but for `refuseNext`, whose
//! entries replace those of the same identity. The operator's own requests under `/$emulator/` know no faults, and
//! connections with the provisioning service neither stalls, nor latency after CONNACK, nor the hub's limits.
//!
//! Requests over HTTPS fail by `failRequests`. The first entry that fits decides: `method` (any if absent) and how the path
//! begins (`path`, by default `/`), `probability` (by default 1), and `count` times (without end if absent). `code` is the
//! answer: `429001`, `500001`, `503001`, or `0` for none: then the connection is cut. With `"done": true` what was asked
//! for is done first, so that `{"code": 0, "done": true}` loses the answer of a change that was made. `retryAfterSecs` adds the
//! header. In `failTwinRequests`, `0` sends no answer on the connection, which goes on.
//!
//! Throttles have the limits of the documentation ("IoT Hub quotas and throttling") for registry operations, twin
//! reads and updates, connections, messages both ways, direct methods, queries, jobs and configurations, for `units` (1)
//! units. As it describes, a burst is served at once (`burstSecs`, 60, of the limit's rate), then operations wait
//! for their turn, and are refused if that would take more than `queueSecs` (10): requests over HTTPS and twin requests
//! with 429 (over HTTPS with `Retry-After` if `retryAfter` is `true`); device-to-cloud messages are acknowledged late, and
//! end their connection at last. CONNECT is answered late, or with `"onConnect": "silence"` not at all. A bulk request
//! takes one operation for each entry, or with `"bulk": "one"` one for all. `GET /$emulator/throttles` tells the operations of
//! each category, with or without limits, and what is left in the buckets; `DELETE` begins anew.
//!
//! # What it does not do
//!
//! AMQP, connections with X.509 certificates, file upload, routing, import and export by blob, digital twins, and daily
//! quotas.

mod authentication;
mod chance;
mod clock;
mod cloud_to_device;
mod configurations;
mod delayed;
mod dps;
mod error;
mod faults;
mod files;
mod history;
mod hub;
mod identity;
mod jobs;
mod kept;
mod keys;
mod listeners;
mod methods;
mod mqtt;
mod options;
mod policies;
mod puppets;
mod query;
mod refusal;
mod registry;
mod rest;
mod sas;
mod strangers;
mod telemetry;
mod throttles;
mod tls;
mod topics;
mod twin;
mod twin_document;
mod warning;
mod websocket;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use error::EmulatorError;
pub use options::Options;

use hub::Hub;
use kept::Kept;
use keys::KeySlot;
use listeners::Listeners;
use policies::Policies;
use tls::Authority;

/// Starts a hub on the current tokio runtime. When this returns, both ports listen and `hub.json` is written.
///
/// # Errors
///
/// An option makes no sense, the data directory can't be used, or an address can't be listened on.
pub async fn start(options: Options) -> Result<Emulator, EmulatorError> {
    options.check()?;
    let dir = files::create_dir(&options.data_dir)?;
    let lock = Arc::new(files::lock(&dir)?);
    let ready_file = dir.join("hub.json");
    // One left by an earlier run would tell callers of ports that nobody listens on.
    files::remove(&ready_file)?;
    let authority = Authority::load_or_create(&dir)?;
    let policies = Policies::load_or_create(&dir)?;
    let tls = authority.acceptor(&options.host_name)?;
    let listeners = Listeners::bind(options.mqtts, options.https).await?;
    let addresses = listeners.addresses().map_err(|source| EmulatorError::Listen {
        service: "MQTT over TLS and HTTPS",
        address: options.mqtts,
        source,
    })?;
    let (mqtts, https) = addresses;
    let mut arm_token = [0; 32];
    getrandom::fill(&mut arm_token)?;
    let owner_key = policies.find("iothubowner").map(|owner| owner.key(KeySlot::Primary).encode());
    let ready = Ready {
        host_name: options.host_name.clone(),
        mqtts: mqtts.to_string(),
        https: https.to_string(),
        ca_file: authority.file,
        service_connection_string: format!(
            "HostName={}:{};SharedAccessKeyName=iothubowner;SharedAccessKey={}",
            options.host_name,
            https.port(),
            owner_key.unwrap_or_default(),
        ),
        arm_endpoint: format!("https://localhost:{}", https.port()),
        arm_token: URL_SAFE_NO_PAD.encode(arm_token),
        id_scope: options.id_scope.clone(),
    };
    let text = serde_json::to_string_pretty(&ready)
        .map_err(|error| EmulatorError::Damaged { path: ready_file.clone(), problem: error.to_string() })?;
    let (stop, stopped) = oneshot::channel();
    let faults = options.faults_in_force()?;
    let kept = match options.keep_state {
        true => Some(Kept::open(&dir, lock.clone())?),
        false => None,
    };
    let seed = faults.seed();
    let state_file = dir.join("state.db");
    let hub = Hub::new(options, policies, faults, kept)
        .map_err(|problem| EmulatorError::State { path: state_file, problem })?;
    let hub = Arc::new(hub);
    // A sweep that the last end cut short.
    hub.sweep();
    let task = tokio::spawn(listeners::run(hub, tls, listeners, addresses, stopped));
    files::write_private(&ready_file, &text)?;
    tracing::info!(%mqtts, %https, "the hub listens");
    Ok(Emulator { ready, seed, ready_file, stop, task, _lock: lock })
}

/// A running hub. Dropping it stops the hub without waiting for that.
#[derive(Debug)]
pub struct Emulator {
    ready: Ready,
    seed: u64,
    ready_file: PathBuf,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// The data directory's lock, held for as long as it is open: a second hub there would take hub.json away.
    _lock: Arc<files::DirLock>,
}

impl Emulator {
    /// Where the hub listens, and how to get in.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// What the faults' chance began with: that of the options, or one that was chosen.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Ends every connection, closes both ports and removes `hub.json`. Returns when that is done.
    pub async fn shutdown(self) {
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the hub ended badly");
        }
        if let Err(error) = files::remove(&self.ready_file) {
            tracing::warn!(%error, "hub.json is still there");
        }
    }
}

/// Where the hub listens, and how to get in: the content of `hub.json`. It holds secrets; its `Debug` doesn't show them.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// The hub's name in tokens and user names.
    pub host_name: String,
    /// Address of MQTT over TLS, `127.0.0.1:PORT`.
    pub mqtts: String,
    /// Address of HTTPS, `127.0.0.1:PORT`.
    pub https: String,
    /// The certificate that clients have to trust, PEM; an absolute path.
    pub ca_file: PathBuf,
    /// Connection string of the policy that may do everything.
    pub service_connection_string: String,
    /// Base address of the resource manager's interface.
    pub arm_endpoint: String,
    /// Bearer token of the resource manager's interface.
    pub arm_token: String,
    /// The provisioning service's ID scope, which the user names of registering devices begin with.
    pub id_scope: String,
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready")
            .field("host_name", &self.host_name)
            .field("mqtts", &self.mqtts)
            .field("https", &self.https)
            .field("ca_file", &self.ca_file)
            .field("arm_endpoint", &self.arm_endpoint)
            .field("id_scope", &self.id_scope)
            .finish_non_exhaustive()
    }
}
