//! The Front thread: the half that orders, with the network around it, on one tokio loop.
//!
//! Everything here runs on one thread. What arrives is handed to Front at once; what Front wants done is collected once
//! a turn of the loop, after everything that was readable has been read. So requests that arrive together become one
//! batch, and no timer delays the first.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chronon_kernel::{Answer, Busy, Consistency, Culprit, Engine, Halted, NotExecuted};
use chronon_node::{
    Front, FrontInput, FrontOutput, FrontStatus, Gate, Room, ToBack, ToFront, Token, VaultReport,
};
use chronon_vsr::{
    Clocks, ClusterId, Digest, Durable, Event, Instant, Loss, Message, Op, Payload, Quarantine, ReplicaId,
    Role, Status, SyncProgress, Write, WriteNumber,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use crate::admission::{Admission, Admitted};
use crate::apply::BackMessage;
use crate::clients::Connection;
use crate::clock::{self, Clock};
use crate::config::Limits;
use crate::counters::Counters;
use crate::mailbox::Mailbox;
use crate::peers::Peers;
use crate::stop::{Stop, StopReason};
use crate::turn::Turn;
use crate::vault::VaultMessage;

/// Between two reports of the disk's age while a write is outstanding.
const DISK_AGE_REPORT: Duration = Duration::from_millis(100);

/// The longest sleep: a deadline further off is looked at again then.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);

/// How much is taken from one channel before the outputs are carried out.
const TURN_MAX: usize = 1_024;

/// A look at the engine between two ops.
pub(crate) type Look = Box<dyn FnOnce(&dyn Engine) + Send>;

/// What other threads ask of Front.
pub(crate) enum Ask {
    /// Order this.
    Submit { admitted: Admitted, timeout: Duration, answer: oneshot::Sender<Answer> },
    /// Answer this.
    Query { query: Vec<u8>, consistency: Consistency, timeout: Duration, answer: oneshot::Sender<Answer> },
    /// Show the engine to this, once it is as fresh as is said.
    Look { look: Look, consistency: Consistency, timeout: Duration, answer: oneshot::Sender<Answer> },
    /// Say how it is.
    Status(oneshot::Sender<FrontReport>),
    /// Give the primacy up, if it has it.
    StepDown,
}

/// How Front is.
#[derive(Clone, Debug)]
pub(crate) struct FrontReport {
    pub(crate) status: FrontStatus,
    /// Whether those are reached without whom it can answer nothing: a backup's primary, a primary's quorum.
    pub(crate) in_touch: bool,
    /// Where execution has halted, if it has.
    pub(crate) halted: Option<Halted>,
    /// Requests that nobody has an answer to yet.
    pub(crate) unanswered: usize,
    /// Whether it fetches a state, and acknowledges nothing until it has it.
    pub(crate) fetches: bool,
    /// How far that state is.
    pub(crate) sync: Option<SyncProgress>,
    /// The op of its newest checkpoint.
    pub(crate) checkpoint: Op,
    /// How long its oldest write has been under way.
    pub(crate) disk_age: Duration,
    /// What it can't go on without and nobody has.
    pub(crate) loss: Option<Loss>,
    pub(crate) clocks: Clocks,
    /// This replica's part of `GET /v1/cluster`.
    pub(crate) json: String,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A client's connection.
    Client { connection: Rc<Connection>, ticket: u64 },
    /// Another thread.
    Thread(oneshot::Sender<Answer>),
}

impl Waiter {
    /// Answers.
    pub(crate) fn answer(self, answer: Answer) {
        match self {
            Waiter::Client { connection, ticket } => connection.answer(ticket, answer),
            // Nobody waits any more: the caller went away.
            Waiter::Thread(sender) => drop(sender.send(answer)),
        }
    }
}

/// What the Front thread is made of.
pub(crate) struct FrontThread {
    pub(crate) me: ReplicaId,
    pub(crate) cluster: ClusterId,
    pub(crate) limits: Limits,
    pub(crate) admission: Admission,
    pub(crate) counters: Arc<Counters>,
    pub(crate) peers: Peers,
    front: RefCell<Front>,
    clocks: clock::Clocks,
    /// Something was handed to Front since the outputs were last carried out.
    touched: Notify,
    waiters: RefCell<HashMap<Token, Waiter>>,
    /// Looks at the engine that wait, as queries do, for an op to be applied.
    looks: RefCell<HashMap<Token, Look>>,
    next_token: Cell<u64>,
    /// The halt that was told in the log.
    told: RefCell<Option<Halted>>,
    writes: RefCell<Writes>,
    wal: Mailbox<Write>,
    back: Mailbox<BackMessage>,
    vault: Mailbox<VaultMessage>,
    turn: Arc<Turn>,
    voters: Vec<ReplicaId>,
    gate: Arc<Mutex<Gate>>,
    primary: watch::Sender<Option<ReplicaId>>,
    pub(crate) stop: Stop,
}

/// The other ends of the Front thread's queues.
pub(crate) struct Joints {
    pub(crate) wal: Mailbox<Write>,
    pub(crate) back: Mailbox<BackMessage>,
    pub(crate) vault: Mailbox<VaultMessage>,
    pub(crate) turn: Arc<Turn>,
    pub(crate) voters: Vec<ReplicaId>,
    pub(crate) gate: Arc<Mutex<Gate>>,
    /// Whom this replica takes for the primary.
    pub(crate) primary: watch::Sender<Option<ReplicaId>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clocks: clock::Clocks,
    pub(crate) stop: Stop,
}

/// What the other threads say to Front.
pub(crate) struct Inlets {
    pub(crate) durable: mpsc::Receiver<Durable>,
    pub(crate) back: mpsc::Receiver<ToFront>,
    pub(crate) vault: mpsc::Receiver<VaultReport>,
    pub(crate) asks: mpsc::Receiver<Ask>,
}

impl FrontThread {
    /// The thread's state around an opened Front.
    pub(crate) fn new(
        front: Front,
        (me, cluster): (ReplicaId, ClusterId),
        peers: Peers,
        limits: Limits,
        admission: Admission,
        joints: Joints,
    ) -> FrontThread {
        FrontThread {
            me,
            cluster,
            limits,
            admission,
            peers,
            front: RefCell::new(front),
            clocks: joints.clocks,
            touched: Notify::new(),
            waiters: RefCell::default(),
            looks: RefCell::default(),
            next_token: Cell::new(1),
            told: RefCell::default(),
            writes: RefCell::default(),
            wal: joints.wal,
            back: joints.back,
            vault: joints.vault,
            turn: joints.turn,
            voters: joints.voters,
            gate: joints.gate,
            primary: joints.primary,
            counters: joints.counters,
            stop: joints.stop,
        }
    }

    /// Runs until the replica stops.
    pub(crate) async fn run(self: Rc<Self>, mut inlets: Inlets) {
        let stop = self.stop.clone();
        let mut stopped = pin!(stop.stopped());
        let mut deadline = self.carry_out();
        loop {
            let patience = deadline.since(Clock.monotonic()).min(SLEEP_MAX);
            tokio::select! {
                _ = &mut stopped => return,
                () = self.touched.notified() => {}
                Some(durable) = inlets.durable.recv() => self.durable(durable),
                Some(from_back) = inlets.back.recv() => self.handle(FrontInput::Back(from_back)),
                Some(report) = inlets.vault.recv() => self.handle(FrontInput::Vault(report)),
                Some(ask) = inlets.asks.recv() => self.ask(ask),
                () = sleep(patience) => {}
            }
            for _ in 0..TURN_MAX {
                let Ok(durable) = inlets.durable.try_recv() else { break };
                self.durable(durable);
            }
            for _ in 0..TURN_MAX {
                let Ok(from_back) = inlets.back.try_recv() else { break };
                self.handle(FrontInput::Back(from_back));
            }
            while let Ok(report) = inlets.vault.try_recv() {
                self.handle(FrontInput::Vault(report));
            }
            for _ in 0..TURN_MAX {
                let Ok(ask) = inlets.asks.try_recv() else { break };
                self.ask(ask);
            }
            // Looked at in every turn: under load something else is always readable before a timer is heard.
            if deadline <= Clock.monotonic() {
                self.tick();
            }
            deadline = self.carry_out();
        }
    }

    /// A peer's message.
    pub(crate) fn message(&self, message: Message) {
        let appends = matches!(message.payload, Payload::Prepare { .. } | Payload::Repair { .. });
        if appends && self.writes.borrow().full(&self.limits) {
            // As if the network had lost it: the disk is behind, and what waits for it must stay bounded.
            self.counters.peer_prepares_shed.add();
            return;
        }
        self.touch(FrontInput::Message(message));
    }

    /// The connection to a peer was lost and can't be made again.
    pub(crate) fn peer_unreachable(&self, peer: ReplicaId) {
        self.touch(FrontInput::PeerUnreachable(peer));
    }

    /// Orders a request.
    pub(crate) fn submit(&self, waiter: Waiter, admitted: Admitted, timeout: Duration) {
        self.counters.submissions.add();
        let token = self.wait(waiter);
        let deadline = self.deadline(timeout);
        let Admitted { request, repeat } = admitted;
        self.touch(FrontInput::Submit { token, request, deadline, repeat });
    }

    /// Answers a query.
    pub(crate) fn query(&self, waiter: Waiter, query: Vec<u8>, consistency: Consistency, timeout: Duration) {
        self.counters.queries.add();
        let token = self.wait(waiter);
        let deadline = self.deadline(timeout);
        self.touch(FrontInput::Query { token, query, consistency, deadline });
    }

    /// This replica's part of `GET /v1/cluster`.
    pub(crate) fn status_json(&self) -> String {
        let front = self.front.borrow();
        let status = front.status();
        let replica = front.replica();
        let (role, stamp, serving, primary) = match status.role {
            Role::Primary { stamp, serving } => ("primary", stamp, serving, Some(self.me)),
            Role::Backup { stamp, primary } => ("backup", stamp, false, Some(primary)),
            Role::Changing { stamp } => ("changing", stamp, false, None),
        };
        let protocol = match status.status {
            Status::Normal => "normal",
            Status::ViewChange => "view_change",
            Status::RecoveringHead => "recovering_head",
            Status::Halted => "halted",
        };
        let disk_age = self.writes.borrow().age(Clock.monotonic());
        let intake = replica.intake();
        serde_json::json!({
            "replica": self.me.value(),
            "role": role,
            "serving": serving,
            "status": protocol,
            "primary": primary.map(ReplicaId::value),
            "epoch": stamp.epoch.value(),
            "view": stamp.view.value(),
            "op": status.head.value(),
            "commit": status.commit_max.op.value(),
            "applied": status.applied.value(),
            "halted": front.halted().map(text_of_halt),
            "checkpoint": replica.checkpoint().entry.op.value(),
            "log_start": replica.log_start().value(),
            "fetching_state": replica.is_fetching_state(),
            "sync": replica.sync_progress().map(|SyncProgress { op, fetched, chunks }| serde_json::json!({
                "op": op.value(), "fetched": fetched, "chunks": chunks,
            })),
            "state_transfers": self.counters.state_transfers.value(),
            "quarantine": status.quarantine.map(|Quarantine { op, own, majority }| serde_json::json!({
                "op": op.value(),
                "digest": own.map(hex),
                "majority": majority.map(hex),
            })),
            "diverged": replica.diverged().map(ReplicaId::value).collect::<Vec<_>>(),
            "unrecoverable": replica.loss().map(|Loss { what, replicas }| {
                let replicas: Vec<u8> = replicas.iter().map(|replica| replica.value()).collect();
                serde_json::json!({"what": what.to_string(), "op": what.op().value(), "replicas": replicas})
            }),
            "clocks": match replica.clocks() {
                Clocks::Agree => "agree",
                Clocks::OwnIsOff => "own_is_off",
                Clocks::Disagree => "disagree",
            },
            "queued": status.queued,
            "intake": {
                "slowed_for": intake.slowed.map(|(voter, _)| voter.value()),
                "pause_ms": intake.slowed.map_or(0, |(_, pause)| millis(pause)),
                "paused_ms": millis(intake.paused_total),
            },
            "disk_age_ms": millis(disk_age),
            "disk": {
                "age_ms": millis(disk_age),
                "stalls": self.counters.disk_stalls.value(),
                "stall_ms_max": self.counters.disk_stall_ms_max.value(),
                "short": status.room == Room::Short,
                "available_bytes": self.counters.disk_available_bytes.value(),
                "wal_bytes": self.counters.wal_bytes.value(),
                "wal_used_bytes": self.counters.wal_used_bytes.value(),
                "checkpoints_bytes": self.counters.vault_bytes.value(),
                "checkpoints_live_bytes": self.counters.vault_live_bytes.value(),
                "damaged": {
                    "wal_groups": self.counters.wal_groups_damaged.value(),
                    "wal_blots": self.counters.wal_blots.value(),
                    "superblock_copies": self.counters.superblock_copies_damaged.value(),
                    "chunks": self.counters.chunks_damaged.value(),
                    "chunks_mended": self.counters.chunks_repaired.value(),
                },
                "scrub": {
                    "wal_bytes": self.counters.wal_scrub_bytes.value(),
                    "wal_rounds": self.counters.wal_scrub_rounds.value(),
                    "checkpoints_bytes": self.counters.vault_scrub_bytes.value(),
                    "checkpoints_rounds": self.counters.vault_scrub_rounds.value(),
                },
            },
            "peers_connected": self.peers.connected(),
        })
        .to_string()
    }

    fn ask(&self, ask: Ask) {
        match ask {
            Ask::Submit { admitted, timeout, answer } => {
                self.submit(Waiter::Thread(answer), admitted, timeout)
            }
            Ask::Query { query, consistency, timeout, answer } => {
                self.query(Waiter::Thread(answer), query, consistency, timeout);
            }
            Ask::Look { look, consistency, timeout, answer } => {
                let token = self.wait(Waiter::Thread(answer));
                self.looks.borrow_mut().insert(token, look);
                let deadline = self.deadline(timeout);
                self.handle(FrontInput::Query { token, query: Vec::new(), consistency, deadline });
            }
            Ask::Status(sender) => {
                let status = self.front.borrow().status();
                let in_touch = match status.role {
                    Role::Primary { .. } => self.peers.reaches_a_quorum(),
                    Role::Backup { primary, .. } => self.peers.reaches(primary),
                    Role::Changing { .. } => false,
                };
                let report = FrontReport {
                    status,
                    in_touch,
                    halted: self.front.borrow().halted().cloned(),
                    unanswered: self.waiters.borrow().len(),
                    fetches: self.front.borrow().replica().is_fetching_state(),
                    sync: self.front.borrow().replica().sync_progress(),
                    checkpoint: self.front.borrow().replica().checkpoint().entry.op,
                    disk_age: self.writes.borrow().age(Clock.monotonic()),
                    loss: self.front.borrow().replica().loss().cloned(),
                    clocks: self.front.borrow().replica().clocks(),
                    json: self.status_json(),
                };
                // Nobody waits any more: the caller went away.
                drop(sender.send(report));
            }
            Ask::StepDown => self.handle(FrontInput::StepDown),
        }
    }

    fn wait(&self, waiter: Waiter) -> Token {
        let token = Token(self.next_token.get());
        self.next_token.set(token.0 + 1);
        self.waiters.borrow_mut().insert(token, waiter);
        token
    }

    fn deadline(&self, timeout: Duration) -> Instant {
        Clock.monotonic() + timeout.min(self.limits.request_timeout_max)
    }

    fn handle(&self, input: FrontInput) {
        self.front.borrow_mut().handle(self.clocks.now(), input);
    }

    /// Hands something over from a task beside the loop.
    fn touch(&self, input: FrontInput) {
        self.handle(input);
        self.touched.notify_one();
    }

    fn tick(&self) {
        let now = Clock.monotonic();
        let (is_new, report) = {
            let mut writes = self.writes.borrow_mut();
            (writes.reported.is_none(), writes.report(now))
        };
        match report {
            Some(age) => {
                self.counters.disk_stalls.add_many(usize::from(is_new));
                self.counters.disk_stall_ms_max.raise(millis(age));
                self.handle(FrontInput::DiskAge(age));
            }
            None => self.handle(FrontInput::Tick),
        }
    }

    fn durable(&self, durable: Durable) {
        let recovered = self.writes.borrow_mut().durable(durable);
        self.handle(FrontInput::Durable(durable));
        if recovered {
            self.handle(FrontInput::DiskAge(Duration::ZERO));
        }
    }

    /// Carries out what Front wants done, and says when it wants to be asked again.
    fn carry_out(&self) -> Instant {
        let mut front = self.front.borrow_mut();
        loop {
            match front.poll_output() {
                FrontOutput::Send(to, message) => self.peers.send(to, &message),
                FrontOutput::Persist(write) => self.persist(write),
                FrontOutput::Back(ToBack::Query { token, .. })
                    if self.looks.borrow().contains_key(&token) =>
                {
                    let Some(look) = self.looks.borrow_mut().remove(&token) else { continue };
                    // Behind the commits that it waits for, as a query would be.
                    self.back.push(BackMessage::Look(look));
                    let queried = ToFront::Queried { token, op: Op::ROOT, answer: Ok(Vec::new()) };
                    front.handle(self.clocks.now(), FrontInput::Back(queried));
                }
                FrontOutput::Back(to_back) => self.back.push(BackMessage::Front(to_back)),
                FrontOutput::Vault(task) => self.vault.push(VaultMessage::Task(task)),
                FrontOutput::Answer(token, answer) => self.answer(token, answer),
                FrontOutput::GateConfirmed(round) => {
                    self.gate.lock().unwrap_or_else(PoisonError::into_inner).confirm(round);
                }
                FrontOutput::GateClosed => self.gate.lock().unwrap_or_else(PoisonError::into_inner).close(),
                FrontOutput::Event(event) => {
                    if let Event::CheckpointDurable { .. } | Event::Synced { .. } = event {
                        self.vault.push(VaultMessage::Durable(*front.replica().checkpoint()));
                    }
                    self.tell(&event);
                }
                FrontOutput::Wait(deadline) => {
                    self.tell_halt(front.halted());
                    let role = front.status().role;
                    self.turn.note_role(self.me, &self.voters, &role);
                    let primary = match role {
                        Role::Primary { .. } => Some(self.me),
                        Role::Backup { .. } | Role::Changing { .. } => front.replica().followed(),
                    };
                    self.primary.send_if_modified(|known| std::mem::replace(known, primary) != primary);
                    let intake = front.replica().intake();
                    let pause = intake.slowed.map_or(Duration::ZERO, |(_, pause)| pause);
                    self.counters.intake_pause_ms.set(millis(pause));
                    self.counters.intake_paused_ms.set(millis(intake.paused_total));
                    return deadline.min(self.writes.borrow().next_report());
                }
            }
        }
    }

    fn persist(&self, write: Write) {
        let mut writes = self.writes.borrow_mut();
        writes.started(&write, Clock.monotonic());
        // Appends that peers cause are shed at the limit; what the protocol writes of its own accord is far less.
        let limit = 2 * self.limits.wal_writes_max;
        if limit < writes.count() {
            self.stop.stop(StopReason::WalQueueFull { limit });
        }
        self.counters.wal_writes.add();
        self.wal.push(write);
    }

    fn answer(&self, token: Token, answer: Answer) {
        match &answer {
            Answer::Decided(_) | Answer::Answered { .. } => self.counters.answers_decided.add(),
            Answer::NotExecuted(_) => self.counters.answers_not_executed.add(),
            Answer::Indeterminate => self.counters.answers_indeterminate.add(),
        }
        self.looks.borrow_mut().remove(&token);
        if let Some(waiter) = self.waiters.borrow_mut().remove(&token) {
            waiter.answer(answer);
        }
    }

    fn tell(&self, event: &Event) {
        match event {
            Event::PrimaryStarted { stamp, head } => info!(%stamp, %head, "this replica is the primary"),
            Event::ViewAdopted { stamp, head } => info!(%stamp, %head, "adopted the log of the primary"),
            Event::ViewChangeVoted { stamp, to, why } => info!(%stamp, %to, ?why, "voted to leave the view"),
            Event::ViewChangeStarted { stamp } => {
                self.counters.view_changes.add();
                info!(%stamp, "view change");
            }
            Event::Forfeited { stamp, to } => {
                info!(%stamp, %to, "gave the view up to a replica that holds more")
            }
            Event::LogTruncated { stamp, head } => info!(%stamp, %head, "cut what was never committed"),
            Event::FirstCommitReached { stamp, op } => {
                info!(%stamp, %op, "reached the view's first commit point");
            }
            Event::EntryRepaired { entry, from } => debug!(op = %entry.op, %from, "repaired an entry"),
            Event::MessageDropped { from, command, why } => {
                debug!(%from, ?command, ?why, "dropped a message")
            }
            Event::Unrecoverable(Loss { what, replicas }) => {
                let replicas: Vec<u8> = replicas.iter().map(|replica| replica.value()).collect();
                error!(%what, ?replicas, "no replica has it any more: nothing goes on until one of them has it again");
            }
            Event::ForkDetected { op } => error!(%op, "two logs where there must be one: this replica halts"),
            Event::PeerRefused { replica, why } => error!(%replica, %why, "a peer is not listened to"),
            Event::Refused { by, why } => self.stop.stop(StopReason::Refused { by: *by, why: *why }),
            Event::ReadRoundConfirmed { round } => debug!(round, "read round confirmed"),
            Event::Abdicated { stamp, why } => {
                self.counters.abdications.add();
                warn!(%stamp, ?why, "gave the primacy up");
            }
            Event::CheckpointMismatch { op, peer } => {
                error!(%op, %peer, "replicas disagree about a checkpoint");
            }
            Event::DigestMismatch { op, peer } => error!(%op, %peer, "replicas disagree about the state"),
            Event::Diverged { replica, op, digest, majority } => {
                let (digest, majority) = (digest.map(hex), majority.map(hex));
                error!(%replica, %op, ?digest, ?majority, "a replica's state is not what the others come to");
            }
            Event::Quarantined { op, digest, majority } => {
                let (digest, majority) = (digest.map(hex), majority.map(hex));
                error!(%op, ?digest, ?majority, "quarantined: this replica's state is not the cluster's; it answers nothing");
            }
            Event::QuarantineLifted { op } => {
                warn!(%op, "this replica agrees with the others again");
            }
            Event::SyncStarted { op } => {
                self.counters.state_transfers.add();
                info!(%op, "fetches the state of a checkpoint");
            }
            Event::IntakeSlowed { voter, pause } => {
                warn!(%voter, ?pause, "a replica lags: commands are taken on more slowly");
            }
            Event::IntakeRestored => info!("no replica lags that a slower pace would help"),
            Event::ClockDegraded => warn!("no majority of clocks agrees"),
            Event::ClockAgreed => info!("a majority of clocks agrees again"),
            // A newer release of the core may tell more.
            other => info!(event = ?other, "event"),
        }
    }

    fn tell_halt(&self, halted: Option<&Halted>) {
        let mut told = self.told.borrow_mut();
        if told.as_ref() == halted {
            return;
        }
        match halted {
            Some(halted) => {
                let Halted { op, culprit, message, .. } = halted;
                error!(
                    %op, call = %culprit, message,
                    "execution has halted: the machine panics. Mend the machine, or have the call skipped: chronon skip {op}"
                );
            }
            None => info!("execution goes on"),
        }
        self.counters.halted_op.set(halted.map_or(0, |halted| halted.op.value()));
        *told = halted.cloned();
    }

    /// The replica stops: no more attempts start, and everybody who still waits hears that nobody can say any more
    /// what becomes of it.
    pub(crate) fn end(&self) {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).close();
        for (_, waiter) in self.waiters.borrow_mut().drain() {
            waiter.answer(Answer::Indeterminate);
        }
    }
}

fn hex(digest: Digest) -> String {
    format!("{:016x}", digest.0)
}

/// A halt as `GET /v1/cluster` shows it.
pub(crate) fn text_of_halt(halted: &Halted) -> serde_json::Value {
    let Halted { op, culprit, fingerprint, message } = halted;
    let fingerprint: String = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    serde_json::json!({
        "op": op.value(),
        "call": culprit.to_string(),
        "request": if let Culprit::Request(request) = culprit { Some(request) } else { None },
        "message": message,
        "fingerprint": fingerprint,
        "remedy": format!("mend the machine, or have the call skipped: POST /v1/ops/{op}/skip, chronon skip {op}"),
    })
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes that are not durable yet, to know how old the oldest is. Its age counts from the moment that Front asked:
/// what waits in the WAL thread's queue is as late as what waits in the device.
#[derive(Debug, Default)]
struct Writes {
    appends: VecDeque<Started>,
    superblocks: VecDeque<Started>,
    bytes: usize,
    reported: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Started {
    number: WriteNumber,
    at: Instant,
    bytes: usize,
}

impl Writes {
    fn started(&mut self, write: &Write, at: Instant) {
        match write {
            Write::Append { number, entry, .. } => {
                let bytes = entry.body().len();
                self.bytes += bytes;
                self.appends.push_back(Started { number: *number, at, bytes });
            }
            Write::Superblock { number, .. } => {
                self.superblocks.push_back(Started { number: *number, at, bytes: 0 });
            }
        }
    }

    /// Forgets what is durable now; true when a reported age is over.
    fn durable(&mut self, durable: Durable) -> bool {
        let (queue, number) = match durable {
            Durable::Appended(number) => (&mut self.appends, number),
            Durable::Superblock(number) => (&mut self.superblocks, number),
        };
        while let Some(started) = queue.front()
            && started.number <= number
        {
            self.bytes -= started.bytes;
            queue.pop_front();
        }
        let young =
            self.oldest().is_none_or(|oldest| self.reported.is_some_and(|reported| reported < oldest));
        young && self.reported.take().is_some()
    }

    fn oldest(&self) -> Option<Instant> {
        let fronts = [self.appends.front(), self.superblocks.front()];
        fronts.into_iter().flatten().map(|started| started.at).min()
    }

    fn age(&self, now: Instant) -> Duration {
        self.oldest().map_or(Duration::ZERO, |oldest| now.since(oldest))
    }

    fn count(&self) -> usize {
        self.appends.len() + self.superblocks.len()
    }

    fn full(&self, limits: &Limits) -> bool {
        limits.wal_writes_max <= self.count() || limits.wal_bytes_max <= self.bytes
    }

    /// When the age is to be reported next.
    fn next_report(&self) -> Instant {
        match (self.oldest(), self.reported) {
            (None, _) => Instant::NEVER,
            (Some(oldest), None) => oldest + DISK_AGE_REPORT,
            (Some(oldest), Some(reported)) => oldest.max(reported) + DISK_AGE_REPORT,
        }
    }

    /// The age, if it is to be reported now.
    fn report(&mut self, now: Instant) -> Option<Duration> {
        if now < self.next_report() {
            return None;
        }
        self.reported = Some(now);
        Some(self.age(now))
    }
}

/// How other threads ask Front.
#[derive(Clone, Debug)]
pub(crate) struct FrontHandle {
    asks: mpsc::Sender<Ask>,
    primary: watch::Receiver<Option<ReplicaId>>,
}

impl FrontHandle {
    /// A handle whose asks arrive there.
    pub(crate) fn new(asks: mpsc::Sender<Ask>, primary: watch::Receiver<Option<ReplicaId>>) -> FrontHandle {
        FrontHandle { asks, primary }
    }

    /// Waits until this replica takes another for the primary.
    pub(crate) async fn until_another_leads(&self, than: ReplicaId) {
        let mut primary = self.primary.clone();
        let another = primary.wait_for(|primary| primary.is_some_and(|primary| primary != than));
        if another.await.is_err() {
            // The replica has stopped, and hears of nobody any more.
            std::future::pending::<()>().await;
        }
    }

    /// Orders a request and waits for what becomes of it.
    pub(crate) async fn submit(&self, admitted: Admitted, timeout: Duration) -> Answer {
        let (answer, receiver) = oneshot::channel();
        self.ask(Ask::Submit { admitted, timeout, answer }, receiver).await
    }

    /// Asks a query and waits for its answer.
    pub(crate) async fn query(&self, query: Vec<u8>, consistency: Consistency, timeout: Duration) -> Answer {
        let (answer, receiver) = oneshot::channel();
        self.ask(Ask::Query { query, consistency, timeout, answer }, receiver).await
    }

    /// Looks at the engine between two ops, once it is as fresh as is said.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        consistency: Consistency,
        timeout: Duration,
        look: impl FnOnce(&dyn Engine) -> T + Send + 'static,
    ) -> Result<T, Answer> {
        let (seen_sender, seen) = oneshot::channel();
        // Nobody waits any more: the caller went away.
        let look: Look = Box::new(move |engine| drop(seen_sender.send(look(engine))));
        let (answer, receiver) = oneshot::channel();
        let looked = async {
            match self.ask(Ask::Look { look, consistency, timeout, answer }, receiver).await {
                Answer::Answered { .. } => seen.await.map_err(|_| Answer::Indeterminate),
                answer => Err(answer),
            }
        };
        // Front keeps to the time until it hands the look over; Back may be busy with one op for longer.
        let expired = Err(Answer::NotExecuted(NotExecuted::Expired));
        tokio::time::timeout(timeout, looked).await.unwrap_or(expired)
    }

    /// Whether the replica has stopped.
    pub(crate) fn is_gone(&self) -> bool {
        self.asks.is_closed()
    }

    /// How Front is; none once the replica has stopped.
    pub(crate) async fn report(&self) -> Option<FrontReport> {
        let (sender, receiver) = oneshot::channel();
        self.asks.send(Ask::Status(sender)).await.ok()?;
        receiver.await.ok()
    }

    /// Gives the primacy up, if this replica has it.
    pub(crate) async fn step_down(&self) {
        // A replica that has stopped leads nothing.
        let _ = self.asks.send(Ask::StepDown).await;
    }

    async fn ask(&self, ask: Ask, receiver: oneshot::Receiver<Answer>) -> Answer {
        match self.asks.try_send(ask) {
            // The replica stopped with the request in its hands.
            Ok(()) => receiver.await.unwrap_or(Answer::Indeterminate),
            Err(mpsc::error::TrySendError::Full(_)) => Answer::NotExecuted(NotExecuted::Busy {
                busy: Busy::QueueFull,
                retry_after: Duration::from_millis(50),
            }),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Answer::NotExecuted(NotExecuted::NoPrimary { primary: None })
            }
        }
    }
}
