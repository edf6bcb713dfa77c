//! One program: its requests are read one after the other, and answered as the answers come. Messages may be under way in any
//! number for which the program has room; of everything else it gets the answer before its next line is read, so that
//! answers that it does not read keep it waiting and cost nothing more.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::lines::{Line, LineError, Lines};
use super::places::Activity;
use super::protocol::{Answer, Asked, Id, Parsed, Question, failed, parse};
use super::{ANSWERS_LEN, Replacement, Request};
use crate::budget::{Account, Room};
use crate::clock::Clock;
use crate::hub::outbox::Message;
use crate::keyring::Registration;

/// What is kept of a message whose answer has not been written yet, in bytes: its `id`, and what wakes whoever answers.
pub(super) const ENTRY_LEN: usize = 320;
/// A program that leaves an answer unread for so long is closed: what it holds is of use to others.
const UNREAD_MAX: Duration = Duration::from_secs(300);

/// How often it is looked whether a program that waits for the hub is still there.
const HANG_UP_LOOK: Duration = Duration::from_secs(10);
const NO_ROOM: &str = "the messages that wait for the hub leave no room for this one: wait until the hub has acknowledged some, then send it again";
const MAY_NOT_BRING: &str =
    "only root and the agent's own user may bring a key: run `twinkey-agent provision --replace` as root";

/// What all connections share.
pub(super) struct Shared {
    pub(super) registration: Registration,
    pub(super) driver: mpsc::Sender<Request>,
    pub(super) clock: Clock,
    /// For lines that are longer than a connection's own buffer.
    pub(super) lanes: Semaphore,
}

/// A program that has a place.
pub(super) struct Connection {
    pub(super) account: Account,
    pub(super) activity: Arc<Activity>,
    pub(super) is_privileged: bool,
    pub(super) shared: Arc<Shared>,
}

/// What is to be answered.
enum Pending {
    Published(Published),
    Ready {
        text: Zeroizing<Vec<u8>>,
        /// Told when it has been written.
        written: oneshot::Sender<()>,
    },
}

/// A message that the hub has not acknowledged yet.
struct Published {
    id: Id,
    acknowledged: oneshot::Receiver<()>,
    entry: Option<Room>,
}

impl Future for Published {
    type Output = (Answer, Option<Room>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let acknowledged = std::task::ready!(Pin::new(&mut self.acknowledged).poll(context));
        let id = std::mem::take(&mut self.id);
        let answer = match acknowledged {
            Ok(()) => Answer { id, ok: true, ..Answer::default() },
            Err(_) => stopping(id),
        };
        Poll::Ready((answer, self.entry.take()))
    }
}

/// The program has gone, or can't be answered.
struct Gone;

impl Connection {
    /// Serves the program until it has gone and everything is answered.
    pub(super) async fn serve(self, stream: UnixStream) {
        let (reader, writer) = stream.into_split();
        let (pending_sender, pending) = mpsc::unbounded_channel();
        let answering = self.answer(writer, pending);
        tokio::pin!(answering);
        tokio::select! {
            () = &mut answering => return,
            read = self.read(reader, pending_sender) => {
                if read.is_err() {
                    return;
                }
            }
        }
        answering.await;
    }

    async fn read(&self, reader: OwnedReadHalf, pending: mpsc::UnboundedSender<Pending>) -> Result<(), Gone> {
        let mut lines = Lines::new(reader, self.shared.clock.clone());
        loop {
            self.activity.rest(self.shared.clock.now(), self.account.held_len() > 0);
            let begun = lines.begin().await;
            self.activity.begin();
            let line = match begun {
                Ok(true) => lines.next(&self.account, &self.shared.lanes).await,
                Ok(false) => return end_of(lines.reader()),
                Err(error) => Err(error),
            };
            let mut line = match line {
                Ok(Some(line)) => line,
                Ok(None) | Err(LineError::Io(_)) => return end_of(lines.reader()),
                // Where the next line begins can't be known any more.
                Err(error @ (LineError::TooLong | LineError::TooSlow)) => {
                    return say(&pending, &failed(Id::None, error.to_string())).await;
                }
            };
            let (Parsed { id, asked }, room) = loop {
                let parsed = parse(lines.text(&line), &self.shared.registration.identity);
                let Ok(Asked::Publish { topic, payload }) = &parsed.asked else { break (parsed, None) };
                let len = Message::cost_of(topic.len() + payload.len()) + ENTRY_LEN;
                let room = match &mut line {
                    Line::Long { room: Some(room), .. } => Some(room.split_off(len)),
                    Line::Long { room: None, .. } | Line::Short(_) => self.account.take(len),
                };
                let may_wait = matches!(line, Line::Short(_)) && self.account.held_len() > 0;
                if room.is_some() || !may_wait {
                    break (parsed, room);
                }
                // Its own messages are in the way. Until one of them is answered, the line alone is kept.
                drop(parsed);
                self.account.given_back().await;
            };
            if !matches!(asked, Ok(Asked::Publish { .. })) {
                // It may hold a key.
                lines.wipe(&line);
            }
            // Others may wait for the lane.
            drop(line);
            match asked {
                Ok(Asked::Publish { topic, payload }) => match room {
                    Some(room) => self.publish(id, topic, payload, room, &pending).await?,
                    None => say(&pending, &failed(id, NO_ROOM)).await?,
                },
                Ok(Asked::Question(question)) => say(&pending, &self.ask(id, question).await).await?,
                Err(problem) => say(&pending, &failed(id, problem)).await?,
            }
        }
    }

    async fn publish(
        &self,
        id: Id,
        topic: String,
        payload: Bytes,
        mut room: Room,
        pending: &mpsc::UnboundedSender<Pending>,
    ) -> Result<(), Gone> {
        let entry = Some(room.split_off(ENTRY_LEN));
        let (acknowledged, receiver) = oneshot::channel();
        let message = Message { topic, payload, acknowledged, room };
        if self.shared.driver.send(Request::Publish(message)).await.is_err() {
            return say(pending, &stopping(id)).await;
        }
        let published = Published { id, acknowledged: receiver, entry };
        pending.send(Pending::Published(published)).map_err(|_| Gone)
    }

    async fn ask(&self, id: Id, question: Question) -> Answer {
        let driver = &self.shared.driver;
        match question {
            Question::Status => {
                let (sender, receiver) = oneshot::channel();
                match (driver.send(Request::Status(sender)).await, receiver.await) {
                    (Ok(()), Ok(status)) => {
                        Answer { id, ok: true, status: Some(status), ..Answer::default() }
                    }
                    (Ok(()) | Err(_), _) => stopping(id),
                }
            }
            Question::Replace { .. } if !self.is_privileged => failed(id, MAY_NOT_BRING),
            Question::Replace { registration, key, slot } => {
                let (sender, receiver) = oneshot::channel();
                let replacement = Replacement { registration, slot, key: Box::new(key), answer: sender };
                match (driver.send(Request::Replace(replacement)).await, receiver.await) {
                    (Ok(()), Ok(Ok(key))) => Answer { id, ok: true, key: Some(key), ..Answer::default() },
                    (Ok(()), Ok(Err(error))) => failed(id, error),
                    (Ok(()) | Err(_), _) => stopping(id),
                }
            }
            Question::Token { ttl_secs } => {
                let (sender, receiver) = oneshot::channel();
                match (driver.send(Request::Token { ttl_secs, answer: sender }).await, receiver.await) {
                    (Ok(()), Ok(Ok(token))) => {
                        Answer { id, ok: true, token: Some(token), ..Answer::default() }
                    }
                    (Ok(()), Ok(Err(error))) => failed(id, error),
                    (Ok(()) | Err(_), _) => stopping(id),
                }
            }
        }
    }

    async fn answer(&self, mut writer: OwnedWriteHalf, mut pending: mpsc::UnboundedReceiver<Pending>) {
        let mut published = FuturesUnordered::new();
        let mut looks = tokio::time::interval(HANG_UP_LOOK);
        let mut is_open = true;
        let mut text = Vec::with_capacity(ANSWERS_LEN);
        while is_open || !published.is_empty() {
            tokio::select! {
                next = pending.recv(), if is_open => match next {
                    Some(Pending::Published(one)) => published.push(one),
                    Some(Pending::Ready { text, written }) => {
                        if write(&mut writer, &text).await.is_err() {
                            return;
                        }
                        let _ = written.send(());
                    }
                    None => is_open = false,
                },
                // Whoever has gone keeps no place until the hub is back.
                _ = looks.tick(), if !published.is_empty() => {
                    if has_hung_up(writer.as_ref()) {
                        return;
                    }
                }
                Some(first) = published.next(), if !published.is_empty() => {
                    let mut entries = Vec::new();
                    let mut next = Some(first);
                    // As many as are there already.
                    while let Some((answer, entry)) = next {
                        text.extend(answer.text());
                        text.push(b'\n');
                        entries.push(entry);
                        let has_room = text.len() < ANSWERS_LEN / 2;
                        next = if has_room { published.next().now_or_never().flatten() } else { None };
                    }
                    if write(&mut writer, &text).await.is_err() {
                        return;
                    }
                    text.clear();
                    drop(entries);
                    self.activity.answered(self.shared.clock.now(), self.account.held_len() > 0);
                }
            }
        }
    }
}

async fn say(pending: &mpsc::UnboundedSender<Pending>, answer: &Answer) -> Result<(), Gone> {
    let mut text = Zeroizing::new(answer.text());
    text.push(b'\n');
    let (written, is_written) = oneshot::channel();
    pending.send(Pending::Ready { text, written }).map_err(|_| Gone)?;
    is_written.await.map_err(|_| Gone)
}

async fn write(writer: &mut OwnedWriteHalf, text: &[u8]) -> Result<(), Gone> {
    match timeout(UNREAD_MAX, writer.write_all(text)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Gone),
    }
}

/// What it means that nothing more comes: a program that has closed its own direction only may wait for answers.
fn end_of(reader: &OwnedReadHalf) -> Result<(), Gone> {
    if has_hung_up(reader.as_ref()) { Err(Gone) } else { Ok(()) }
}

/// Whether the program has closed both directions (poll(2), POLLHUP).
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut look = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut look, Some(&Timespec::default()))
        .is_ok_and(|_| look.first().is_some_and(|look| look.revents().contains(PollFlags::HUP)))
}

fn stopping(id: Id) -> Answer {
    failed(id, "the agent is stopping")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, BufReader, Lines as Answers};
    use tokio::task::JoinHandle;
    use twinkey_contract::Identity;

    use super::*;
    use crate::budget::{Budget, FLOOR_LEN, PROGRAMS_LEN_MAX, SHARED_LEN};
    use crate::local::LONG_LINES_MAX;

    /// A program that is connected, and the driver's end.
    struct World {
        budget: Budget,
        requests: mpsc::Receiver<Request>,
        answers: Answers<BufReader<OwnedReadHalf>>,
        program: OwnedWriteHalf,
        serving: JoinHandle<()>,
    }

    fn world(is_privileged: bool) -> World {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (driver, requests) = mpsc::channel(super::super::REQUESTS_MAX);
        let identity = Identity { device_id: "d".into(), module_id: None };
        let registration =
            Registration { host_name: "hub.example".into(), identity, gateway_host_name: None };
        let clock = Clock::system();
        let budget = Budget::default();
        let connection = Connection {
            account: budget.open(),
            activity: Arc::new(Activity::new(clock.now())),
            is_privileged,
            shared: Arc::new(Shared { registration, driver, clock, lanes: Semaphore::new(LONG_LINES_MAX) }),
        };
        let serving = tokio::spawn(connection.serve(ours));
        let (answers, program) = theirs.into_split();
        World { budget, requests, answers: BufReader::new(answers).lines(), program, serving }
    }

    impl World {
        async fn say(&mut self, request: &Value) {
            self.program.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        }

        async fn hear(&mut self) -> Value {
            serde_json::from_str(&self.answers.next_line().await.unwrap().unwrap()).unwrap()
        }
    }

    fn publish(id: usize, len: usize) -> Value {
        json!({"request": "publish", "id": id, "body": "x".repeat(len)})
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_has_used_up_its_share_goes_on_when_messages_are_acknowledged_and_none_is_lost() {
        const COUNT: usize = 4_000;
        let World { budget, mut requests, mut answers, mut program, serving } = world(false);
        let says = async move {
            for id in 0..COUNT {
                program.write_all(format!("{}\n", publish(id, 3_000)).as_bytes()).await.unwrap();
            }
            drop(program);
        };
        let hears = async move {
            let mut heard = vec![false; COUNT];
            while let Some(line) = answers.next_line().await.unwrap() {
                let answer: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(answer["ok"], true, "{answer}");
                assert!(!std::mem::replace(&mut heard[answer["id"].as_u64().unwrap() as usize], true));
            }
            assert!(heard.into_iter().all(|heard| heard));
        };
        let hub = async move {
            let mut held = Vec::new();
            let mut pauses = 0;
            loop {
                // Virtual time passes once everybody waits for somebody else.
                match timeout(Duration::from_secs(1), requests.recv()).await {
                    Ok(Some(Request::Publish(message))) => held.push(message),
                    Ok(Some(other)) => panic!("{other:?}"),
                    Ok(None) => break,
                    Err(_) if held.is_empty() => break,
                    Err(_) => {
                        pauses += 1;
                        assert!(budget.held_len() <= SHARED_LEN / 2 + FLOOR_LEN);
                        for message in held.drain(..) {
                            let Message { acknowledged, room, .. } = message;
                            drop(room);
                            let _ = acknowledged.send(());
                        }
                    }
                }
            }
            assert!(pauses > 2, "{pauses}");
            assert_eq!(budget.held_len(), 0);
        };
        tokio::join!(says, hears, hub);
        serving.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn where_others_have_taken_the_room_a_small_message_is_taken_and_a_large_one_refused_by_its_id() {
        let mut world = world(false);
        let others: Vec<_> = (0..20).map(|_| world.budget.open()).collect();
        let rooms: Vec<_> =
            others.iter().flat_map(|other| std::iter::from_fn(|| other.take(1_000))).collect();
        world.say(&publish(7, 100_000)).await;
        let answer = world.hear().await;
        assert_eq!((&answer["id"], &answer["ok"]), (&json!(7), &json!(false)));
        assert!(answer["error"].as_str().unwrap().contains("no room"), "{answer}");
        world.say(&publish(8, 1_000)).await;
        let Some(Request::Publish(message)) = world.requests.recv().await else { panic!("no message") };
        // The large one waits while it waits for the small one; then there is still no room.
        world.say(&publish(9, 100_000)).await;
        message.acknowledged.send(()).unwrap();
        drop(message.room);
        assert_eq!((&world.hear().await["id"], &world.hear().await["id"]), (&json!(8), &json!(9)));
        drop(rooms);
        world.say(&publish(10, 100_000)).await;
        assert!(matches!(world.requests.recv().await, Some(Request::Publish(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_reads_no_answers_costs_one_and_is_closed_in_the_end_and_a_quiet_one_is_not() {
        let mut world = world(false);
        let quiet = self::world(false);
        let asks = async {
            let line = format!("{}\n", json!({"request": "status"}));
            while world.program.write_all(line.as_bytes()).await.is_ok() {}
        };
        let answers = async {
            while let Some(request) = world.requests.recv().await {
                let Request::Status(answer) = request else { panic!("{request:?}") };
                let _ = answer.send(json!({"much": "x".repeat(10_000)}));
            }
        };
        let began = world.budget.held_len();
        tokio::select! {
            () = async { tokio::join!(asks, answers); } => {}
            () = tokio::time::sleep(2 * UNREAD_MAX) => panic!("it is still served"),
        }
        assert_eq!(world.budget.held_len(), began);
        tokio::time::sleep(24 * UNREAD_MAX).await;
        assert!(world.serving.is_finished() && !quiet.serving.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_handed_on_for_those_who_may_bring_one_and_for_nobody_else() {
        let key = "c2VjcmV0LWtleS1vZi10aGlydHktdHdvLWJ5dGVzISE=";
        let text = format!("HostName=hub.example;DeviceId=d;SharedAccessKey={key}");
        let replace = json!({"request": "replace", "id": "r", "connectionString": text});
        let mut other = world(false);
        other.say(&replace).await;
        let answer = other.hear().await;
        assert_eq!(answer["error"], MAY_NOT_BRING);
        assert!(!answer.to_string().contains(key) && other.requests.try_recv().is_err());

        let mut person = world(true);
        person.say(&replace).await;
        let Some(Request::Replace(replacement)) = person.requests.recv().await else { panic!("no key") };
        replacement.answer.send(Ok("5f1d0c3b9a7e2466".to_owned())).unwrap();
        assert_eq!(person.hear().await, json!({"id": "r", "ok": true, "key": "5f1d0c3b9a7e2466"}));
    }

    #[test]
    fn the_largest_message_fits_into_the_share_of_a_program_alone() {
        let largest = Message::cost_of(crate::hub::outbox::MESSAGE_LEN_MAX) + ENTRY_LEN;
        assert!(Budget::default().open().take(4 * largest).is_some() && SHARED_LEN < PROGRAMS_LEN_MAX);
    }
}
