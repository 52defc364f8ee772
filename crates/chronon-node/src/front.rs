//! Front: the half that orders.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use chronon_kernel::{
    Answer, Batch, Busy, Consistency, Halted, NotExecuted, Origin, Refusal, Request, RequestResult,
};
use chronon_vsr::{
    Applied, BODY_SIZE_MAX, Checkpoint, Checksum, Durable, Entry, Event, Input, Instant, Message, Mutation,
    NotProposed, NotReadable, Now, Op, OpRef, Options, Output, Purpose, Quarantine, ReadNumber, Recipients,
    Recovered, Replica, ReplicaId, Role, Room, RoundConfirmed, Stamp, Status, Write,
};

use crate::{ToBack, ToFront, VaultReport, VaultTask};

/// Names a submission or query between the driver and Front. Drawn by the driver, never used twice in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Bounds of what Front holds. When one is reached the answer is Busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontLimits {
    /// Requests waiting to be prepared.
    pub queue_requests_max: usize,
    /// Bytes of requests waiting to be prepared.
    pub queue_bytes_max: usize,
    /// Requests prepared and not yet answered.
    pub in_flight_max: usize,
    /// Queries waiting for a read round or for execution.
    pub queries_max: usize,
    /// Committed ops handed to Back and not yet executed; beyond it nothing new is prepared.
    pub behind_ops_max: u64,
}

impl Default for FrontLimits {
    fn default() -> FrontLimits {
        FrontLimits {
            queue_requests_max: 16_384,
            queue_bytes_max: 16 * 1024 * 1024,
            in_flight_max: 65_536,
            queries_max: 16_384,
            behind_ops_max: 1_024,
        }
    }
}

/// One thing that happened to Front.
#[derive(Clone, Debug)]
pub enum FrontInput {
    /// Time passed.
    Tick,
    /// A peer's message.
    Message(Message),
    /// Storage made something durable.
    Durable(Durable),
    /// The age of storage's oldest outstanding write.
    DiskAge(Duration),
    /// The connection to a peer was reset and can't be made again.
    PeerUnreachable(ReplicaId),
    /// Order this encoded request (see `chronon_kernel::Request::encode`), if this replica is the primary.
    Submit {
        /// Comes back with the answer.
        token: Token,
        /// The encoded request.
        request: Vec<u8>,
        /// No answer is of use after this instant.
        deadline: Instant,
        /// An earlier attempt's end is unknown: of NotExecuted only "ask elsewhere" is of use to the caller.
        repeat: bool,
    },
    /// Answer this encoded query.
    Query {
        /// Comes back with the answer.
        token: Token,
        /// The encoded query.
        query: Vec<u8>,
        /// How fresh the state must be.
        consistency: Consistency,
        /// No answer is of use after this instant.
        deadline: Instant,
    },
    /// Back did something.
    Back(ToFront),
    /// The store of chunks did something.
    Vault(VaultReport),
    /// Give the primacy up, if this is the primary.
    StepDown,
}

/// One thing that Front wants done, in this order.
#[derive(Clone, Debug)]
pub enum FrontOutput {
    /// Send a message; losing it is allowed.
    Send(Recipients, Message),
    /// Write this and say when it is durable.
    Persist(Write),
    /// Hand this to Back.
    Back(ToBack),
    /// Ask this of the store of chunks.
    Vault(VaultTask),
    /// Answer a submission or a query.
    Answer(Token, Answer),
    /// A read round was confirmed: open the gate.
    GateConfirmed(RoundConfirmed),
    /// This replica leads no more: close the gate.
    GateClosed,
    /// Something worth knowing happened.
    Event(Event),
    /// Nothing to do before this instant, or the next input.
    Wait(Instant),
}

/// What Front can say of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontStatus {
    /// The part that it plays.
    pub role: Role,
    /// What it is doing, in the protocol's words.
    pub status: Status,
    /// The newest op in its log.
    pub head: Op,
    /// The newest op that it knows committed.
    pub commit_max: OpRef,
    /// The newest op that Back executed.
    pub applied: Op,
    /// Requests waiting to be prepared.
    pub queued: usize,
    /// Callers that wait for an answer.
    pub waiting: usize,
    /// Whether there is room for the next checkpoint.
    pub room: Room,
    /// Why it answers nothing: its state is not the cluster's.
    pub quarantine: Option<Quarantine>,
}

/// When to come again after Busy.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// When to come again while execution has halted: a person is waited for.
const RETRY_AFTER_HALTED: Duration = Duration::from_secs(1);

/// How long a request that was prepared by a primary that leads no more still waits to see its op committed. After
/// that the caller hears Indeterminate, early enough to ask the new primary under the same number.
const ORPHAN_PATIENCE: Duration = Duration::from_millis(250);

/// How long a query whose read round was lost waits before it asks for another.
const READ_RETRY: Duration = Duration::from_millis(20);

/// The most requests of one op. Their results are answered one by one, so one op must not hold a second's worth.
const BATCH_REQUESTS_MAX: usize = 8_192;

/// The half that orders.
#[derive(Debug)]
pub struct Front {
    limits: FrontLimits,
    replica: Replica,
    role: Role,
    /// What Back has executed.
    applied: Op,
    /// Waiting to be prepared.
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    /// Prepared here and not known committed, by op. More than one proposal stands at an op only when a view change
    /// took the first away and this replica leads again.
    proposals: BTreeMap<Op, Vec<Proposal>>,
    /// Committed, and waiting for Back.
    executing: BTreeMap<Op, Vec<Slot>>,
    /// Committed entries that Back has no room for yet, and freezes among them. They are shared with the log, which
    /// bounds them.
    commits: VecDeque<Step>,
    /// The op of a checkpoint that Back was told to go on from, and has not.
    installing: Option<Op>,
    /// The newest op handed to Back.
    handed: Op,
    halt: Option<Halt>,
    /// Whoever still waits for an answer. A token that is not here has had its answer.
    waiting: BTreeMap<Token, Waiting>,
    deadlines: BTreeSet<(Instant, Token)>,
    reads: Reads,
    room: Room,
    /// Whether it has heard that what Back executes is not what the others do.
    quarantined: bool,
    outputs: VecDeque<FrontOutput>,
    now: Now,
}

/// Back executes nothing more until the log holds a skip.
#[derive(Debug)]
struct Halt {
    halted: Halted,
    /// The committed log was searched up to here.
    searched: Op,
}

/// What Back is to do next, in the log's order.
#[derive(Debug)]
enum Step {
    Commit(Entry),
    Freeze(OpRef),
}

/// A request that waits to be prepared.
#[derive(Debug)]
struct Queued {
    /// None: it comes from Back, and nobody waits for an answer.
    token: Option<Token>,
    request: Vec<u8>,
}

/// An entry that this replica prepared.
#[derive(Debug)]
struct Proposal {
    checksum: Checksum,
    slots: Vec<Slot>,
}

/// Who waits for which request of a batch.
#[derive(Clone, Copy, Debug)]
struct Slot {
    token: Token,
    request: usize,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    deadline: Instant,
    stage: Stage,
    repeat: bool,
}

/// How far a request or query has come: it decides what may honestly be said when its time runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Queued,
    Prepared,
    Query,
}

/// Queries on their way.
#[derive(Debug, Default)]
struct Reads {
    /// Waiting for a read round to be asked for, not before the instant.
    new: VecDeque<(Instant, PendingQuery)>,
    /// Waiting for their read round.
    rounds: BTreeMap<ReadNumber, Vec<PendingQuery>>,
    /// Waiting until this op is handed to Back.
    held: BTreeMap<Op, Vec<PendingQuery>>,
}

#[derive(Debug)]
struct PendingQuery {
    token: Token,
    query: Vec<u8>,
}

impl Front {
    /// Front as the data directory left it. Drain its outputs before anything else.
    pub fn open(options: Options, limits: FrontLimits, recovered: Recovered, now: Now) -> Front {
        let replica = Replica::open(options, recovered, now);
        let role = replica.role();
        Front {
            limits,
            role,
            replica,
            applied: Op::ROOT,
            queue: VecDeque::new(),
            queue_bytes: 0,
            proposals: BTreeMap::new(),
            executing: BTreeMap::new(),
            commits: VecDeque::new(),
            installing: None,
            handed: Op::ROOT,
            halt: None,
            waiting: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            reads: Reads::default(),
            room: Room::Enough,
            quarantined: false,
            outputs: VecDeque::new(),
            now,
        }
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Now, input: FrontInput) {
        self.now = now;
        match input {
            FrontInput::Tick => self.replica.handle(now, Input::Tick),
            FrontInput::Message(message) => self.replica.handle(now, Input::Message(message)),
            FrontInput::Durable(durable) => self.replica.handle(now, Input::Durable(durable)),
            FrontInput::DiskAge(age) => self.replica.handle(now, Input::DiskAge(age)),
            FrontInput::PeerUnreachable(peer) => self.replica.handle(now, Input::PeerUnreachable(peer)),
            FrontInput::StepDown => self.replica.handle(now, Input::StepDown),
            FrontInput::Submit { token, request, deadline, repeat } => {
                self.on_submit(token, request, deadline, repeat);
            }
            FrontInput::Query { token, query, consistency, deadline } => {
                self.on_query(token, query, consistency, deadline);
            }
            FrontInput::Back(ToFront::Executed { applied, results }) => self.on_executed(applied, results),
            FrontInput::Back(ToFront::Halted(halted)) => self.on_halted(halted),
            FrontInput::Back(ToFront::Installed { applied }) => self.on_installed(applied),
            FrontInput::Vault(report) => self.on_vault(report),
            FrontInput::Back(ToFront::Queried { token, .. }) if self.answers_nothing() => {
                self.not_executed(token, self.no_primary());
            }
            FrontInput::Back(ToFront::Queried { token, op, answer }) => {
                let answer = match answer {
                    Ok(answer) => Answer::Answered { op: op.value(), answer },
                    Err(error) => Answer::NotExecuted(NotExecuted::Refused {
                        code: "query_failed".into(),
                        message: alloc::format!("{error}"),
                    }),
                };
                self.answer(token, answer);
            }
            FrontInput::Back(ToFront::Propose(request)) => self.on_propose(request),
        }
        self.follow_quarantine();
        self.expire();
    }

    /// The next thing to do. Drain until `Wait`.
    ///
    /// Batches are formed here and not in `handle`: whatever a driver takes in before it drains goes into one op.
    pub fn poll_output(&mut self) -> FrontOutput {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return output;
            }
            self.propose_batches();
            self.ask_for_reads();
            match self.replica.poll_output() {
                Output::Wait(deadline) => {
                    self.search_for_a_skip();
                    self.hand_over();
                    if self.outputs.is_empty() {
                        return FrontOutput::Wait(self.next_deadline(deadline));
                    }
                }
                output => self.on_output(output),
            }
        }
    }

    /// What it can say of itself.
    pub fn status(&self) -> FrontStatus {
        FrontStatus {
            role: self.role,
            status: self.replica.status(),
            head: self.replica.head(),
            commit_max: self.replica.commit_max(),
            applied: self.applied,
            queued: self.queue.len(),
            waiting: self.waiting.len(),
            room: self.room,
            quarantine: self.replica.quarantine(),
        }
    }

    /// Where execution has halted, while no skip that leads past it is known committed here.
    pub fn halted(&self) -> Option<&Halted> {
        self.halt.as_ref().map(|halt| &halt.halted)
    }

    /// The replica, to look at.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    // Requests

    fn on_submit(&mut self, token: Token, request: Vec<u8>, deadline: Instant, repeat: bool) {
        let previous = self.waiting.insert(token, Waiting { deadline, stage: Stage::Queued, repeat });
        assert!(previous.is_none(), "the driver draws every token once");
        self.deadlines.insert((deadline, token));

        if REQUEST_SIZE_MAX < request.len() {
            let (size, limit) = (request.len() as u64, REQUEST_SIZE_MAX as u64);
            return self.not_executed(token, NotExecuted::TooLarge { size, limit });
        }
        if self.replica.options().mutations.breaks(Mutation::RefuseFromStaleSessions)
            && self.is_session_unknown_here(&request)
        {
            return self.answer(token, Answer::Decided(RequestResult::Refused(Refusal::SessionEvicted)));
        }
        if !matches!(self.role, Role::Primary { .. }) || self.answers_nothing() {
            return self.not_executed(token, self.no_primary());
        }
        let refusal = match &self.halt {
            Some(halt) => halt.refusal(&request),
            None => (self.room == Room::Short).then(|| busy(Busy::DiskFull)),
        };
        if let Some(refusal) = refusal {
            return self.not_executed(token, refusal);
        }
        let full = self.limits.queue_requests_max <= self.queue.len()
            || self.limits.queue_bytes_max < self.queue_bytes + request.len()
            || self.limits.in_flight_max <= self.waiting.len();
        if full && !self.replica.options().mutations.breaks(Mutation::QueueUnbounded) {
            return self.not_executed(token, busy(Busy::QueueFull));
        }
        self.enqueue(Some(token), request);
    }

    /// The sabotage of [`Mutation::RefuseFromStaleSessions`]: a session that this replica has not executed yet.
    fn is_session_unknown_here(&self, request: &[u8]) -> bool {
        match Request::decode(request) {
            Some(Request::Command { origin: Origin::Session { session, .. }, .. }) => {
                self.applied.value() < session.0.op
            }
            Some(_) | None => false,
        }
    }

    /// A request of Back's own. It is ordered like any other, or carried to the primary; losing it is allowed, since
    /// the dispatcher proposes again until it sees it in the log.
    fn on_propose(&mut self, request: Vec<u8>) {
        // A peer's bytes may come here: what fits no batch must not stand at the head of the queue for ever.
        if REQUEST_SIZE_MAX < request.len() {
            return;
        }
        // It would take the room that a skip may need, again and again.
        if self.halt.is_some() {
            return;
        }
        match self.role {
            Role::Primary { .. } => {
                // Twice the clients' share: when clients fill the queue, outcomes must still get in.
                let limits = &self.limits;
                if self.queue.len() < 2 * limits.queue_requests_max
                    && self.queue_bytes + request.len() <= 2 * limits.queue_bytes_max
                {
                    self.enqueue(None, request);
                }
            }
            Role::Backup { .. } | Role::Changing { .. } => {
                if is_outcome(&request) {
                    self.replica.handle(self.now, Input::Forward(request));
                }
            }
        }
    }

    fn enqueue(&mut self, token: Option<Token>, request: Vec<u8>) {
        self.queue_bytes += request.len();
        self.queue.push_back(Queued { token, request });
    }

    /// Puts what waits into ops, as many as the pipeline takes. At low load a request is an op of its own, at once;
    /// while the pipeline is busy the queue fills, and the next op takes all of it.
    fn propose_batches(&mut self) {
        // While execution has halted only skips are in the queue.
        let purpose = if self.halt.is_some() { Purpose::Relief } else { Purpose::Service };
        while !self.queue.is_empty() && matches!(self.role, Role::Primary { .. }) {
            let behind = self.replica.committed_out().since(self.applied);
            if purpose == Purpose::Service && self.limits.behind_ops_max <= behind {
                return;
            }
            match self.replica.can_propose(0, purpose) {
                Ok(()) => {}
                Err(NotProposed::PipelineFull | NotProposed::Behind | NotProposed::Slowed) => return,
                Err(refusal) => return self.refuse_queue(&self.why_not(refusal)),
            }
            let mut slots = Vec::new();
            let mut requests = Vec::new();
            let mut size = BATCH_OVERHEAD;
            let size_max = self.replica.batch_size_max();
            while let Some(queued) = self.queue.front() {
                let joined = Batch::joined_size(queued.request.len());
                let is_full = size_max < size + joined && !requests.is_empty();
                if is_full || BODY_SIZE_MAX < size + joined || BATCH_REQUESTS_MAX <= requests.len() {
                    break;
                }
                let Some(queued) = self.queue.pop_front() else { break };
                self.queue_bytes -= queued.request.len();
                if let Some(token) = queued.token {
                    // Its time ran out while it waited: the caller was told that it is not executed.
                    let Some(waiting) = self.waiting.get_mut(&token) else { continue };
                    waiting.stage = Stage::Prepared;
                    slots.push(Slot { token, request: requests.len() });
                }
                size += joined;
                requests.push(queued.request);
            }
            if requests.is_empty() {
                continue;
            }
            match self.replica.propose(self.now, Batch::join(&requests).into(), purpose) {
                Ok(proposed) => {
                    let proposal = Proposal { checksum: proposed.entry.checksum, slots };
                    self.proposals.entry(proposed.entry.op).or_default().push(proposal);
                }
                Err(refusal) => {
                    for slot in slots {
                        let answer = self.why_not(refusal);
                        self.not_executed(slot.token, answer);
                    }
                }
            }
        }
    }

    fn refuse_queue(&mut self, why: &NotExecuted) {
        self.queue_bytes = 0;
        for queued in core::mem::take(&mut self.queue) {
            if let Some(token) = queued.token {
                self.not_executed(token, why.clone());
            }
        }
    }

    fn why_not(&self, refusal: NotProposed) -> NotExecuted {
        match refusal {
            NotProposed::NotPrimary { primary } => {
                NotExecuted::NoPrimary { primary: primary.map(ReplicaId::value) }
            }
            NotProposed::PipelineFull | NotProposed::Behind | NotProposed::Slowed => busy(Busy::QueueFull),
            NotProposed::LogFull => busy(Busy::LogFull),
            NotProposed::TooLarge => {
                let limit = BODY_SIZE_MAX as u64;
                NotExecuted::TooLarge { size: limit + 1, limit }
            }
        }
    }

    fn no_primary(&self) -> NotExecuted {
        NotExecuted::NoPrimary { primary: self.replica.followed().map(ReplicaId::value) }
    }

    // Commits

    /// An entry is committed. Whoever waits for another entry at its op knows now that theirs never will be.
    fn on_commit(&mut self, entry: Entry) {
        for proposal in self.proposals.remove(&entry.op()).unwrap_or_default() {
            if proposal.checksum == entry.checksum() {
                self.executing.insert(entry.op(), proposal.slots);
            } else {
                for slot in proposal.slots {
                    let answer = self.no_primary();
                    self.not_executed(slot.token, answer);
                }
            }
        }
        self.commits.push_back(Step::Commit(entry));
    }

    /// Gives Back what it has room for: commits in order, then the queries that waited for them.
    fn hand_over(&mut self) {
        if self.installing.is_some() {
            return;
        }
        while self.handed.since(self.applied) < self.limits.behind_ops_max
            && let Some(step) = self.commits.pop_front()
        {
            let work = match step {
                Step::Commit(entry) => {
                    assert!(entry.op() == self.handed.next());
                    self.handed = entry.op();
                    ToBack::Commit(entry)
                }
                Step::Freeze(entry) => {
                    assert!(entry.op == self.handed);
                    ToBack::Freeze(entry)
                }
            };
            self.outputs.push_back(FrontOutput::Back(work));
        }
        let halted = self.halt.is_some();
        while let Some(held) = self.reads.held.first_entry()
            && (halted || *held.key() <= self.handed)
        {
            let (at_least, queries) = held.remove_entry();
            for PendingQuery { token, query } in queries {
                if halted && self.applied < at_least {
                    // Nobody knows how long it would wait; the state from before would be stale.
                    self.not_executed(token, busy(Busy::Halted));
                } else if self.waiting.contains_key(&token) {
                    self.outputs.push_back(FrontOutput::Back(ToBack::Query { token, at_least, query }));
                }
            }
        }
    }

    // Halting

    /// Back has halted. What waits to be ordered would wait for a person, so its callers hear that it is not executed.
    fn on_halted(&mut self, halted: Halted) {
        // Back had not heard yet of the checkpoint that carries it past this op.
        if self.installing.is_some_and(|op| halted.op <= op) {
            return;
        }
        assert!(self.applied.next() == halted.op);
        self.halt = Some(Halt { searched: halted.op, halted });
        self.search_for_a_skip();
        if self.halt.is_some() {
            self.refuse_queue(&busy(Busy::Halted));
        }
    }

    /// Looks behind the op at which Back has halted, through what is committed and here, as far as that goes today. In
    /// log order: the first skip counts, on every replica. The live log is in memory, and bounds this.
    fn search_for_a_skip(&mut self) {
        while let Some(halt) = &mut self.halt
            && let Some(entry) = self.replica.committed_entry(halt.searched.next())
        {
            halt.searched = entry.op();
            if let Some(skip) = halt.halted.skip_in(entry.op(), entry.body()) {
                self.halt = None;
                self.outputs.push_back(FrontOutput::Back(ToBack::Skip(skip)));
            }
        }
    }

    fn on_executed(&mut self, applied: Applied, mut results: Vec<RequestResult>) {
        assert!(self.applied.next() == applied.op);
        assert!(applied.op <= self.handed);
        self.applied = applied.op;
        // First: others may have told already that it comes to something else.
        self.replica.handle(self.now, Input::Applied(applied));
        for slot in self.executing.remove(&applied.op).unwrap_or_default() {
            let answer = match results.get_mut(slot.request).filter(|_| !self.answers_nothing()) {
                Some(result) => Answer::Decided(core::mem::replace(result, RequestResult::Done)),
                None => Answer::Indeterminate,
            };
            self.answer(slot.token, answer);
        }
    }

    // Quarantine

    /// Whether what Back comes to must not be told: it is not what the others come to.
    fn answers_nothing(&self) -> bool {
        let mutations = self.replica.options().mutations;
        self.replica.quarantine().is_some() && !mutations.breaks(Mutation::QuarantinedAnswers)
    }

    /// When a quarantine begins, whoever waits is told to ask elsewhere. What was prepared may commit, and what it came
    /// to another replica can say.
    fn follow_quarantine(&mut self) {
        let now = self.answers_nothing();
        let before = core::mem::replace(&mut self.quarantined, now);
        if before || !now {
            return;
        }
        self.outputs.push_back(FrontOutput::GateClosed);
        self.refuse_queue(&NotExecuted::NoPrimary { primary: None });
        for (token, stage) in
            self.waiting.iter().map(|(token, waiting)| (*token, waiting.stage)).collect::<Vec<_>>()
        {
            match stage {
                Stage::Queued | Stage::Query => self.not_executed(token, self.no_primary()),
                Stage::Prepared => self.answer(token, Answer::Indeterminate),
            }
        }
    }

    // Checkpoints

    /// The log goes on from a state that a peer's checkpoint, or the own one of an earlier run, holds. What was
    /// prepared here and lies below it was decided without this replica hearing how: a repeat finds the stored reply.
    fn on_install(&mut self, checkpoint: Checkpoint) {
        let op = checkpoint.entry.op;
        // Back answers for what it was handed before.
        self.commits.clear();
        let above = self.proposals.split_off(&op.next());
        let skipped = core::mem::replace(&mut self.proposals, above).into_values().flatten();
        let mut slots: Vec<Slot> = skipped.flat_map(|proposal| proposal.slots).collect();
        slots.extend(self.executing.split_off(&self.handed.next()).into_values().flatten());
        for slot in slots {
            self.answer(slot.token, Answer::Indeterminate);
        }
        self.halt.take_if(|halt| halt.halted.op <= op);
        self.installing = Some(op);
        self.handed = self.handed.max(op);
        self.outputs.push_back(FrontOutput::Back(ToBack::Install(checkpoint)));
    }

    fn on_installed(&mut self, applied: Applied) {
        // A newer one may have been handed over since.
        if self.installing != Some(applied.op) {
            return;
        }
        self.installing = None;
        self.applied = applied.op;
        // What Back had been handed and did not execute, because it had halted.
        let above = self.executing.split_off(&applied.op.next());
        for slot in core::mem::replace(&mut self.executing, above).into_values().flatten() {
            self.answer(slot.token, Answer::Indeterminate);
        }
        self.replica.handle(self.now, Input::Applied(applied));
    }

    fn on_vault(&mut self, report: VaultReport) {
        let input = match report {
            VaultReport::Frozen { entry, digest, root } => Input::Frozen { entry, digest, root },
            VaultReport::Missing { root, ids, in_all } => Input::ChunksMissing { root, ids, in_all },
            VaultReport::Held { root } => Input::ChunksHeld { root },
            VaultReport::Stored { root, id } => Input::ChunkStored { root, id },
            VaultReport::Read { to, id, bytes } => Input::ChunkRead { to, id, bytes },
            VaultReport::Room(room) => {
                self.room = room;
                Input::Room(room)
            }
        };
        self.replica.handle(self.now, input);
    }

    // Queries

    fn on_query(&mut self, token: Token, query: Vec<u8>, consistency: Consistency, deadline: Instant) {
        let previous = self.waiting.insert(token, Waiting { deadline, stage: Stage::Query, repeat: false });
        assert!(previous.is_none(), "the driver draws every token once");
        self.deadlines.insert((deadline, token));
        if self.limits.in_flight_max + self.limits.queries_max <= self.waiting.len() {
            return self.not_executed(token, busy(Busy::QueueFull));
        }
        if self.answers_nothing() {
            return self.not_executed(token, self.no_primary());
        }
        let pending = PendingQuery { token, query };
        match consistency {
            Consistency::Linearizable => self.reads.new.push_back((self.now.monotonic, pending)),
            Consistency::Local => self.reads.held.entry(Op::ROOT).or_default().push(pending),
            Consistency::AtLeast(op) => self.reads.held.entry(Op::new(op)).or_default().push(pending),
        }
    }

    /// One read round serves every query that is waiting for one.
    fn ask_for_reads(&mut self) {
        let now = self.now.monotonic;
        if !self.reads.new.iter().any(|(not_before, _)| *not_before <= now) {
            return;
        }
        let (due, later): (VecDeque<_>, VecDeque<_>) =
            core::mem::take(&mut self.reads.new).into_iter().partition(|(not_before, _)| *not_before <= now);
        self.reads.new = later;
        let due: Vec<PendingQuery> = due
            .into_iter()
            .map(|(_, query)| query)
            .filter(|query| self.waiting.contains_key(&query.token))
            .collect();
        if due.is_empty() {
            return;
        }
        match self.replica.read_index(self.now) {
            Ok(read) => {
                self.reads.rounds.insert(read, due);
            }
            Err(NotReadable::NoPrimary | NotReadable::TooMany) => self.retry_reads(due),
        }
    }

    fn retry_reads(&mut self, queries: Vec<PendingQuery>) {
        let not_before = self.now.monotonic + READ_RETRY;
        self.reads.new.extend(queries.into_iter().map(|query| (not_before, query)));
    }

    // The replica's outputs

    fn on_output(&mut self, output: Output) {
        match output {
            Output::Send(to, message) => self.outputs.push_back(FrontOutput::Send(to, message)),
            Output::Persist(write) => self.outputs.push_back(FrontOutput::Persist(write)),
            Output::Commit(entry) => self.on_commit(entry),
            Output::Freeze(entry) => self.commits.push_back(Step::Freeze(entry)),
            Output::Install(checkpoint) => self.on_install(checkpoint),
            Output::Fetch(checkpoint) => self.ask_vault(VaultTask::Fetch(checkpoint)),
            Output::StoreChunk { root, id, bytes } => self.ask_vault(VaultTask::Store { root, id, bytes }),
            Output::ReadChunk { to, id } => self.ask_vault(VaultTask::Read { to, id }),
            Output::Role(role) => self.on_role(role),
            Output::ReadIndex { read, index } => {
                let queries = self.reads.rounds.remove(&read).unwrap_or_default();
                self.reads.held.entry(index).or_default().extend(queries);
            }
            Output::ReadLost { read } => {
                let queries = self.reads.rounds.remove(&read).unwrap_or_default();
                self.retry_reads(queries);
            }
            Output::RoundConfirmed(round) if !self.quarantined => {
                self.outputs.push_back(FrontOutput::GateConfirmed(round));
            }
            Output::RoundConfirmed(_) => {}
            Output::Forwarded(request) => {
                // A peer may carry how an attempt ended, and nothing else.
                if is_outcome(&request) {
                    self.on_propose(request);
                }
            }
            Output::Event(event) => self.outputs.push_back(FrontOutput::Event(event)),
            Output::Wait(_) => unreachable!("the caller handles it"),
        }
    }

    fn ask_vault(&mut self, task: VaultTask) {
        self.outputs.push_back(FrontOutput::Vault(task));
    }

    fn on_role(&mut self, role: Role) {
        let before = core::mem::replace(&mut self.role, role);
        if serving(before) != serving(role) {
            self.outputs.push_back(FrontOutput::Back(ToBack::Serving(serving(role))));
        }
        let led = matches!(before, Role::Primary { .. });
        let leads = matches!(role, Role::Primary { .. });
        if led && !leads {
            self.outputs.push_back(FrontOutput::GateClosed);
            self.refuse_queue(&self.no_primary());
            self.orphan_proposals();
        }
    }

    /// What was prepared may commit under the next primary, or not: only the log can say. The callers are told so
    /// soon, and not only when their patience ends.
    fn orphan_proposals(&mut self) {
        let deadline = self.now.monotonic + ORPHAN_PATIENCE;
        let lies = self.replica.options().mutations.breaks(Mutation::NotExecutedAfterTruncation);
        let slots: Vec<Slot> =
            self.proposals.values().flatten().flat_map(|proposal| proposal.slots.iter().copied()).collect();
        for Slot { token, .. } in slots {
            if lies {
                self.not_executed(token, NotExecuted::NoPrimary { primary: None });
                continue;
            }
            let Some(waiting) = self.waiting.get_mut(&token) else { continue };
            if deadline < waiting.deadline {
                self.deadlines.remove(&(waiting.deadline, token));
                waiting.deadline = deadline;
                self.deadlines.insert((deadline, token));
            }
        }
    }

    // Answers and time

    fn answer(&mut self, token: Token, answer: Answer) {
        if let Some(waiting) = self.waiting.remove(&token) {
            self.deadlines.remove(&(waiting.deadline, token));
            self.outputs.push_back(FrontOutput::Answer(token, answer));
        }
    }

    /// This attempt is in no op and never will be. When an earlier attempt's end is unknown that does not answer the
    /// caller's question; only "ask elsewhere" is still of use.
    fn not_executed(&mut self, token: Token, why: NotExecuted) {
        let Some(waiting) = self.waiting.get(&token) else { return };
        let answer = match why {
            NotExecuted::NoPrimary { .. } => Answer::NotExecuted(why),
            _ if waiting.repeat => Answer::Indeterminate,
            why => Answer::NotExecuted(why),
        };
        self.answer(token, answer);
    }

    fn expire(&mut self) {
        while let Some((deadline, token)) = self.deadlines.first().copied()
            && deadline <= self.now.monotonic
        {
            match self.waiting.get(&token).map(|waiting| waiting.stage) {
                Some(Stage::Queued | Stage::Query) => self.not_executed(token, NotExecuted::Expired),
                Some(Stage::Prepared) => self.answer(token, Answer::Indeterminate),
                None => {
                    self.deadlines.remove(&(deadline, token));
                }
            }
        }
        // Queries whose caller has gone must not pile up behind an op that never comes.
        let waiting = &self.waiting;
        if self.limits.queries_max < self.reads.held.values().map(Vec::len).sum() {
            for queries in self.reads.held.values_mut() {
                queries.retain(|query| waiting.contains_key(&query.token));
            }
            self.reads.held.retain(|_, queries| !queries.is_empty());
        }
    }

    fn next_deadline(&self, replica: Instant) -> Instant {
        let answers = self.deadlines.first().map_or(Instant::NEVER, |(deadline, _)| *deadline);
        let reads = self.reads.new.iter().map(|(not_before, _)| *not_before).min().unwrap_or(Instant::NEVER);
        replica.min(answers).min(reads)
    }
}

/// The version byte and the count that open a batch.
const BATCH_OVERHEAD: usize = 5;

/// The largest request: alone in its batch it fits an op.
const REQUEST_SIZE_MAX: usize = BODY_SIZE_MAX - Batch::joined_size(0) - BATCH_OVERHEAD;

impl Halt {
    /// Why this is not ordered while execution has halted; nothing, if it is what leads past that.
    fn refusal(&self, request: &[u8]) -> Option<NotExecuted> {
        let Halted { op, culprit, .. } = &self.halted;
        match Request::decode(request) {
            Some(Request::Skip(skip)) if self.halted.is_passed_by(&skip) => None,
            Some(Request::Skip(_)) => Some(NotExecuted::Refused {
                code: "halted_elsewhere".into(),
                message: alloc::format!("execution has halted at op {op}, {culprit}"),
            }),
            Some(_) | None => Some(busy(Busy::Halted)),
        }
    }
}

fn busy(busy: Busy) -> NotExecuted {
    let retry_after = if busy == Busy::Halted { RETRY_AFTER_HALTED } else { RETRY_AFTER };
    NotExecuted::Busy { busy, retry_after }
}

fn serving(role: Role) -> Option<Stamp> {
    match role {
        Role::Primary { stamp, serving: true } => Some(stamp),
        Role::Primary { serving: false, .. } | Role::Backup { .. } | Role::Changing { .. } => None,
    }
}

fn is_outcome(request: &[u8]) -> bool {
    matches!(Request::decode(request), Some(Request::Outcome(_)))
}
