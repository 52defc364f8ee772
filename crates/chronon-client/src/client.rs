//! The client: a session, the way to the primary, and patience.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chronon_kernel::{
    Answer, Busy, COMMAND_SIZE_MAX, Consistency, DeskAct, EffectId, NotExecuted, Refusal, RequestResult,
    SinkName, SinkSpec, Submission,
};
use chronon_vsr::{Op, Timestamp};
use tokio::time::Instant;

use crate::connection::{ConnectError, ConnectionLimits, Unanswered};
use crate::numbers::{Held, Session};
use crate::result::{Committed, QueryError, Read, SubmitError, Ticket};
use crate::route::Route;

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// The cluster that is meant. None: the one that answers first.
    pub cluster: Option<u128>,
    /// How long a request may take, with everything: finding the primary, repeating, waiting for room.
    pub timeout: Duration,
    /// How long one replica may take to answer before another one is asked. It doubles with each such silence, so that
    /// a cluster that is merely slow is not asked ever more often.
    pub patience: Duration,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// Requests under way at once; more wait. At most as many as the cluster keeps replies for one session (1,024).
    pub outstanding_max: u16,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            cluster: None,
            timeout: Duration::from_secs(10),
            patience: Duration::from_secs(1),
            connect_timeout: Duration::from_millis(500),
            outstanding_max: 512,
        }
    }
}

/// A client of a cluster. Clones share its session and its connections; submit from as many tasks as you like.
///
/// Dropping a future of it gives up waiting: what was sent may still be executed, once at most.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    route: Route,
    options: ClientOptions,
    session: RwLock<Option<Arc<Session>>>,
    /// Held while registering, so that many requests open one session.
    registering: tokio::sync::Mutex<()>,
}

/// What became of something that was to be ordered.
enum Ordered {
    Decided(RequestResult),
    NotExecuted(NotExecuted),
    Unknown,
}

/// The pause after every replica was asked in vain: doubles up to the second.
const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// When to come again after a refusal for want of room that the log decided.
const BUSY_RETRY_AFTER: Duration = Duration::from_millis(100);

impl Client {
    /// A client of the cluster whose replicas are reached at these addresses (`host:port` each), with a session.
    pub async fn connect(
        addresses: impl IntoIterator<Item = impl Into<String>>,
        options: ClientOptions,
    ) -> Result<Client, ConnectError> {
        let client = Client::new(addresses, options)?;
        let deadline = Instant::now() + options.timeout;
        match client.inner.session(deadline).await {
            Ok(_) => Ok(client),
            Err(_) => {
                let mut why = None;
                for place in 0..client.inner.route.len() {
                    why = client.inner.route.connection(place).await.err().or(why);
                }
                let addressed =
                    || ConnectError::TimedOut { address: "a primary".to_owned(), within: options.timeout };
                Err(why.unwrap_or_else(addressed))
            }
        }
    }

    /// The same, without waiting for a connection or a session: the first request makes them.
    pub fn new(
        addresses: impl IntoIterator<Item = impl Into<String>>,
        options: ClientOptions,
    ) -> Result<Client, ConnectError> {
        let addresses: Vec<String> = addresses.into_iter().map(Into::into).collect();
        if addresses.is_empty() {
            return Err(ConnectError::Refused {
                address: "(none)".into(),
                why: "no address was given".into(),
            });
        }
        let limits = ConnectionLimits {
            outstanding_max: usize::from(options.outstanding_max) * 2,
            ..Default::default()
        };
        let route = Route::new(addresses, options.cluster, options.connect_timeout, limits);
        let session = RwLock::new(None);
        let registering = tokio::sync::Mutex::new(());
        Ok(Client { inner: Arc::new(Inner { route, options, session, registering }) })
    }

    /// Submits an encoded command and says what became of it.
    pub async fn submit(&self, body: impl Into<Arc<[u8]>>) -> Result<Committed<Vec<u8>>, SubmitError> {
        self.submit_within(body, self.inner.options.timeout).await
    }

    /// The same, with a time of its own.
    pub async fn submit_within(
        &self,
        body: impl Into<Arc<[u8]>>,
        timeout: Duration,
    ) -> Result<Committed<Vec<u8>>, SubmitError> {
        let body: Arc<[u8]> = body.into();
        if COMMAND_SIZE_MAX < body.len() {
            let (size, limit) = (body.len() as u64, COMMAND_SIZE_MAX as u64);
            return Err(SubmitError::NotExecuted(NotExecuted::TooLarge { size, limit }));
        }
        let deadline = Instant::now() + timeout;
        let session = self.inner.session(deadline).await?;
        let held = match tokio::time::timeout_at(deadline, session.draw()).await {
            Ok(held) => Arc::new(held),
            Err(_) => return Err(busy(Busy::QueueFull)),
        };
        self.inner.command(Ticket { held, body }, deadline, false).await
    }

    /// Asks again about a request whose end was unknown.
    pub async fn resume(&self, ticket: Ticket) -> Result<Committed<Vec<u8>>, SubmitError> {
        let deadline = Instant::now() + self.inner.options.timeout;
        self.inner.command(ticket, deadline, true).await
    }

    /// Asks an encoded query.
    pub async fn query(
        &self,
        query: impl Into<Vec<u8>>,
        consistency: Consistency,
    ) -> Result<Read<Vec<u8>>, QueryError> {
        let deadline = Instant::now() + self.inner.options.timeout;
        self.inner.query(query.into(), consistency, deadline).await
    }

    /// Makes, changes or (with no spec) removes a sink, and says its revision. With an expected revision it refuses if
    /// the sink has another one; 0: only if there is none.
    pub async fn set_sink(
        &self,
        name: SinkName,
        spec: Option<SinkSpec>,
        expected_revision: Option<u64>,
    ) -> Result<u64, SubmitError> {
        let request = |_| Submission::SinkSet { name: name.clone(), spec: spec.clone(), expected_revision };
        match self.inner.act(request).await? {
            RequestResult::SinkSet { revision } => Ok(revision),
            other => Err(unexpected(other)),
        }
    }

    /// Acts on an effect, in the name of `by`.
    pub async fn desk(&self, effect: EffectId, act: DeskAct, by: &str) -> Result<(), SubmitError> {
        let request = |_| Submission::Desk { effect, act: act.clone(), by: by.to_owned() };
        match self.inner.act(request).await? {
            RequestResult::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// The cluster as the replica behind one of the addresses sees it: JSON text.
    pub async fn status(&self, place: usize) -> Result<String, ConnectError> {
        let connection = self.inner.route.connection(place % self.inner.route.len()).await?;
        let within = self.inner.options.timeout;
        let lost = || ConnectError::TimedOut { address: format!("replica {}", connection.replica()), within };
        match tokio::time::timeout(within, connection.status()).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(_)) | Err(_) => Err(lost()),
        }
    }
}

fn busy(busy: Busy) -> SubmitError {
    SubmitError::NotExecuted(NotExecuted::Busy { busy, retry_after: BUSY_RETRY_AFTER })
}

/// A result of another kind of request than was asked for: a replica of another mind.
fn unexpected(result: RequestResult) -> SubmitError {
    match result {
        RequestResult::Refused(refusal) => refused(refusal),
        RequestResult::Aborted { at, why } => SubmitError::Aborted { at, why },
        RequestResult::Replied { at, .. } => SubmitError::UnreadableReply { at },
        RequestResult::Registered { .. } | RequestResult::Done | RequestResult::SinkSet { .. } => {
            SubmitError::Codec
        }
    }
}

fn refused(refusal: Refusal) -> SubmitError {
    match refusal {
        Refusal::SessionEvicted => SubmitError::SessionEvicted,
        Refusal::Busy(full) => busy(full),
        // It may have been applied before its reply was dropped, so "refused" would be a lie.
        Refusal::ReplyForgotten { .. } => SubmitError::Unknown,
        refusal => SubmitError::Refused(refusal),
    }
}

impl Inner {
    async fn session(&self, deadline: Instant) -> Result<Arc<Session>, SubmitError> {
        let present = || self.session.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(session) = present() {
            return Ok(session);
        }
        let expired = SubmitError::NotExecuted(NotExecuted::Expired);
        let Ok(_registering) = tokio::time::timeout_at(deadline, self.registering.lock()).await else {
            return Err(expired);
        };
        if let Some(session) = present() {
            return Ok(session);
        }
        let nonce = nonce();
        match self.order(|_| Submission::Register { nonce }, deadline, false).await {
            Ordered::Decided(RequestResult::Registered { session }) => {
                let session = Session::new(session, u64::from(self.options.outstanding_max.max(1)));
                *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
                Ok(session)
            }
            Ordered::Decided(other) => Err(unexpected(other)),
            Ordered::NotExecuted(why) => Err(SubmitError::NotExecuted(why)),
            // A session may be open that nobody uses. The command itself was not sent.
            Ordered::Unknown => Err(expired),
        }
    }

    async fn command(
        &self,
        ticket: Ticket,
        deadline: Instant,
        repeat: bool,
    ) -> Result<Committed<Vec<u8>>, SubmitError> {
        let request =
            |repeat| Submission::Command { origin: ticket.held.origin(), repeat, body: ticket.body.to_vec() };
        match self.order(request, deadline, repeat).await {
            Ordered::Decided(RequestResult::Replied { at, timestamp, reply, effects }) => {
                Ok(Committed { at, timestamp: Timestamp::from_nanos(timestamp), reply, effects })
            }
            Ordered::Decided(RequestResult::Refused(Refusal::SessionEvicted)) => {
                self.forget(&ticket.held);
                Err(SubmitError::SessionEvicted)
            }
            Ordered::Decided(other) => Err(unexpected(other)),
            Ordered::NotExecuted(why) => Err(SubmitError::NotExecuted(why)),
            Ordered::Unknown => Err(SubmitError::Indeterminate { ticket }),
        }
    }

    /// The cluster does not know this session any more: the next request opens another.
    fn forget(&self, held: &Held) {
        let mut present = self.session.write().unwrap_or_else(PoisonError::into_inner);
        if present.as_ref().is_some_and(|session| session.id() == held.session().id()) {
            *present = None;
        }
    }

    /// Something that has no number of its own. It is repeated until somebody knows what became of it.
    async fn act(&self, request: impl Fn(bool) -> Submission) -> Result<RequestResult, SubmitError> {
        let deadline = Instant::now() + self.options.timeout;
        match self.order(request, deadline, false).await {
            Ordered::Decided(result) => Ok(result),
            Ordered::NotExecuted(why) => Err(SubmitError::NotExecuted(why)),
            Ordered::Unknown => Err(SubmitError::Unknown),
        }
    }

    /// Has something ordered: asks until somebody knows what became of it, or the time is up.
    async fn order(
        &self,
        request: impl Fn(bool) -> Submission,
        deadline: Instant,
        mut repeat: bool,
    ) -> Ordered {
        let mut search = Search::new(self, deadline);
        let mut why = NotExecuted::NoPrimary { primary: None };
        while let Some(remaining) = search.remaining() {
            let place = self.route.current();
            let Ok(Ok(connection)) = tokio::time::timeout_at(deadline, self.route.connection(place)).await
            else {
                self.route.leave(place);
                search.in_vain().await;
                continue;
            };
            let asked = connection.submit(remaining, request(repeat));
            match tokio::time::timeout(search.patience.min(remaining), asked).await {
                Ok(Ok(Answer::Decided(result))) => return Ordered::Decided(result),
                Ok(Ok(Answer::NotExecuted(NotExecuted::NoPrimary { primary }))) => {
                    self.route.follow(place, primary);
                    search.in_vain().await;
                }
                Ok(Ok(Answer::NotExecuted(NotExecuted::Busy { busy, retry_after }))) => {
                    why = NotExecuted::Busy { busy, retry_after };
                    search.pause(retry_after).await;
                }
                Ok(Ok(Answer::NotExecuted(NotExecuted::Expired))) => {
                    why = NotExecuted::Expired;
                    self.route.leave(place);
                    search.in_vain().await;
                }
                Ok(Ok(Answer::NotExecuted(
                    refusal @ (NotExecuted::Refused { .. } | NotExecuted::TooLarge { .. }),
                ))) => {
                    // It speaks of this attempt only.
                    return if repeat { Ordered::Unknown } else { Ordered::NotExecuted(refusal) };
                }
                Ok(Ok(Answer::Indeterminate | Answer::Answered { .. })) => {
                    repeat = true;
                    search.in_vain().await;
                }
                Ok(Err(lost)) => {
                    repeat |= lost == Unanswered::Unknown;
                    self.route.leave(place);
                    search.in_vain().await;
                }
                Err(_) => {
                    repeat = true;
                    self.route.leave(place);
                    search.silence();
                }
            }
        }
        if repeat { Ordered::Unknown } else { Ordered::NotExecuted(why) }
    }

    async fn query(
        &self,
        query: Vec<u8>,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Read<Vec<u8>>, QueryError> {
        let mut search = Search::new(self, deadline);
        let mut why = NotExecuted::NoPrimary { primary: None };
        while let Some(remaining) = search.remaining() {
            let place = self.route.current();
            let Ok(Ok(connection)) = tokio::time::timeout_at(deadline, self.route.connection(place)).await
            else {
                self.route.leave(place);
                search.in_vain().await;
                continue;
            };
            let asked = connection.query(remaining, consistency, query.clone());
            match tokio::time::timeout(search.patience.min(remaining), asked).await {
                Ok(Ok(Answer::Answered { op, answer })) => return Ok(Read { op: Op::new(op), answer }),
                Ok(Ok(Answer::NotExecuted(NotExecuted::NoPrimary { primary }))) => {
                    self.route.follow(place, primary);
                    search.in_vain().await;
                }
                Ok(Ok(Answer::NotExecuted(NotExecuted::Busy { busy, retry_after }))) => {
                    why = NotExecuted::Busy { busy, retry_after };
                    search.pause(retry_after).await;
                }
                Ok(Ok(Answer::NotExecuted(NotExecuted::Expired))) => {
                    why = NotExecuted::Expired;
                    self.route.leave(place);
                    search.in_vain().await;
                }
                Ok(Ok(Answer::NotExecuted(
                    refusal @ (NotExecuted::Refused { .. } | NotExecuted::TooLarge { .. }),
                ))) => return Err(QueryError::NotExecuted(refusal)),
                Ok(Ok(Answer::Indeterminate | Answer::Decided(_)) | Err(_)) => {
                    self.route.leave(place);
                    search.in_vain().await;
                }
                Err(_) => {
                    self.route.leave(place);
                    search.silence();
                }
            }
        }
        Err(QueryError::NotExecuted(why))
    }
}

/// The search for a replica that answers: how often in vain, and how long to pause.
struct Search {
    deadline: Instant,
    patience: Duration,
    replicas: usize,
    in_vain: usize,
    pause: Duration,
}

impl Search {
    fn new(inner: &Inner, deadline: Instant) -> Search {
        let patience = inner.options.patience;
        Search { deadline, patience, replicas: inner.route.len(), in_vain: 0, pause: PAUSE_FIRST }
    }

    fn remaining(&self) -> Option<Duration> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        (!remaining.is_zero()).then_some(remaining)
    }

    /// The next replica is tried at once; a pause comes when all of them were tried.
    async fn in_vain(&mut self) {
        self.in_vain += 1;
        if self.in_vain.is_multiple_of(self.replicas) {
            let pause = self.pause;
            self.pause = (pause * 2).min(PAUSE_MAX);
            self.pause(pause).await;
        }
    }

    /// A replica said nothing for as long as we were patient.
    fn silence(&mut self) {
        self.patience *= 2;
    }

    async fn pause(&self, pause: Duration) {
        // Never a whole pause of zero: a replica that says "come again at once" must not be asked in a spin.
        let until = Instant::now() + pause.max(Duration::from_millis(1));
        tokio::time::sleep_until(until.min(self.deadline)).await;
    }
}

/// 128 bits that nobody else draws.
fn nonce() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    u128::from_le_bytes(bytes)
}
