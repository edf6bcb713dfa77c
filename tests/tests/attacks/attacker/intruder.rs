//! A program that connects as the device, says what its master wants, and comes back at once whenever it is kicked.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use twinkey_tests::hub::TestHub;
use twinkey_tests::waiting::until;

use super::mqtt::{Door, Line, Shut};

/// Pause after a connection that did not come about: the hub may be away for a moment.
const PAUSE: Duration = Duration::from_millis(20);

const FILTERS: [&str; 3] =
    ["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"];

/// What he is after.
pub(crate) trait Intent: Send + 'static {
    /// The token for the next CONNECT.
    fn password(&mut self) -> String;

    /// The patch of reported properties that he makes when he has read the twin.
    fn report(&mut self, twin: &Value) -> Option<Value>;

    /// How long he needs for TCP, TLS and CONNECT, besides what this machine takes.
    fn distance(&self) -> Duration {
        Duration::ZERO
    }

    /// What he answers the operator's direct method.
    fn answer(&mut self, _question: &Value) -> Value {
        json!({"freshProof": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="})
    }
}

/// What he has seen so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Connections that the hub accepted.
    pub(crate) accepted: u64,
    /// CONNECTs that the hub refused.
    pub(crate) refused: u64,
    /// Reports that he made and the hub took.
    pub(crate) reported: u64,
    /// Every text that the hub sent him about desired properties.
    pub(crate) desired: Vec<String>,
}

/// The program. Dropping it ends it.
pub(crate) struct Intruder<I> {
    intent: Arc<Mutex<I>>,
    seen: Arc<Mutex<Seen>>,
    identity: String,
    task: AbortHandle,
}

impl<I: Intent> Intruder<I> {
    pub(crate) fn start(door: Door, identity: &str, intent: I) -> Self {
        let (intent, seen) = (Arc::new(Mutex::new(intent)), Arc::new(Mutex::new(Seen::default())));
        let work = Work { intent: intent.clone(), seen: seen.clone(), identity: identity.to_owned() };
        let task = tokio::spawn(work.intrude(door)).abort_handle();
        Self { intent, seen, identity: identity.to_owned(), task }
    }

    pub(crate) fn intent(&self) -> MutexGuard<'_, I> {
        self.intent.lock().unwrap()
    }

    /// Connections that the hub accepted, and refused.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let seen = self.seen();
        (seen.accepted, seen.refused)
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

impl<I> Drop for Intruder<I> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reports what his master wrote down.
pub(crate) struct Says {
    password: String,
    /// The whole section.
    report: Value,
}

impl Says {
    pub(crate) fn new(password: String, report: Value) -> Self {
        Self { password, report }
    }
}

impl Intent for Says {
    fn password(&mut self) -> String {
        self.password.clone()
    }

    fn report(&mut self, _twin: &Value) -> Option<Value> {
        Some(json!({"keyRenewal": self.report}))
    }
}

impl Intruder<Says> {
    /// Has him report this section instead, whole, and returns once the twin shows it.
    pub(crate) async fn say(&self, hub: &TestHub, report: Value) {
        let section = async || hub.twin(&self.identity).await["properties"]["reported"]["keyRenewal"].take();
        // The hub merges: what is not to be there has to be null.
        let mut patch = section().await;
        patch.as_object_mut().unwrap().values_mut().for_each(|value| *value = Value::Null);
        patch.as_object_mut().unwrap().extend(report.as_object().unwrap().clone());
        self.intent().report = patch;
        // He reports again when the desired properties change.
        let times = self.seen().reported;
        hub.desire(&self.identity, json!({"poke": times})).await;
        let wish = without_nulls(report);
        until("the thief's report", async || {
            (self.seen().reported > times && section().await == wish).then_some(())
        })
        .await;
    }
}

/// As a twin keeps it.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => value,
    }
}

struct Work<I> {
    intent: Arc<Mutex<I>>,
    seen: Arc<Mutex<Seen>>,
    identity: String,
}

impl<I: Intent> Work<I> {
    async fn intrude(self, door: Door) {
        loop {
            let (password, distance) = {
                let mut intent = self.intent.lock().unwrap();
                (intent.password(), intent.distance())
            };
            sleep(distance).await;
            match door.open(&self.identity, &password).await {
                Ok(line) => {
                    self.seen.lock().unwrap().accepted += 1;
                    // It ends when he is kicked.
                    let _ = self.speak(line).await;
                }
                Err(shut) => {
                    if matches!(shut, Shut::Refused) {
                        self.seen.lock().unwrap().refused += 1;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn speak(&self, mut line: Line) -> std::io::Result<()> {
        line.subscribe(&FILTERS).await?;
        line.publish("$iothub/twin/GET/?$rid=all", b"").await?;
        loop {
            let message = line.hear().await?;
            let body: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
            if message.topic == "$iothub/twin/res/200/?$rid=all" {
                self.seen.lock().unwrap().desired.push(body["desired"].to_string());
                let report = self.intent.lock().unwrap().report(&body);
                if let Some(report) = report {
                    let topic = "$iothub/twin/PATCH/properties/reported/?$rid=own";
                    line.publish(topic, report.to_string().as_bytes()).await?;
                }
            } else if message.topic.starts_with("$iothub/twin/res/204/?$rid=own") {
                self.seen.lock().unwrap().reported += 1;
            } else if message.topic.starts_with("$iothub/twin/PATCH/properties/desired/") {
                self.seen.lock().unwrap().desired.push(body.to_string());
                line.publish("$iothub/twin/GET/?$rid=all", b"").await?;
            } else if let Some(query) = message.topic.strip_prefix("$iothub/methods/POST/keyRenewal/") {
                let topic = format!("$iothub/methods/res/200/{query}");
                let answer = self.intent.lock().unwrap().answer(&body);
                line.publish(&topic, answer.to_string().as_bytes()).await?;
            }
        }
    }
}
