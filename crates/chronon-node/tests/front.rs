//! Front, alone: a cluster of one over a disk that is durable at once, and a Back that these tests play.

use std::collections::VecDeque;
use std::time::Duration;

use chronon_kernel::{
    Answer, Batch, Busy, Consistency, Culprit, Halted, NotExecuted, Origin, Request, RequestId,
    RequestNumber, RequestResult, SessionId, Skip,
};
use chronon_node::{
    Front, FrontInput, FrontLimits, FrontOutput, ToBack, ToFront, Token, VaultReport, VaultTask,
};
use chronon_vsr::{
    Applied, Checkpoint, Checksum, ClusterId, Digest, DiskId, Durable, Entry, Epoch, Incarnation, Instant,
    Member, Membership, Mutations, Now, Op, OpRef, Options, Recovered, Release, ReplicaId, Ring, Timestamp,
    Timing, VsrState, Write,
};

/// Front and everything around it.
struct Bench {
    front: Front,
    now: Now,
    /// What Back was handed and has not executed.
    back: VecDeque<ToBack>,
    answers: Vec<(Token, Answer)>,
    ops: Vec<Entry>,
    disk: Vec<Durable>,
    /// What it was handed since it halted.
    halted: VecDeque<Entry>,
    /// What was asked of the vault.
    vault: Vec<VaultTask>,
    /// States that Back was told to freeze, and checkpoints that it was told to go on from.
    frozen: Vec<OpRef>,
    installs: Vec<Checkpoint>,
    /// Back halts there, until it is told of a skip.
    halts: Option<Halted>,
    disk_works: bool,
    back_works: bool,
}

impl Bench {
    fn new(voters: u8, limits: FrontLimits) -> Bench {
        Bench::from(voters, limits, None, Ring::DEFAULT)
    }

    /// Begins from this checkpoint, if there is one.
    fn from(voters: u8, limits: FrontLimits, checkpoint: Option<Checkpoint>, ring: Ring) -> Bench {
        let cluster = ClusterId::new(7);
        let member = |id| Member { replica: ReplicaId::new(id), disk: DiskId::new(u128::from(id) + 100) };
        let membership =
            Membership { epoch: Epoch::new(0), voters: (0..voters).map(member).collect(), learners: vec![] };
        let root = membership.root(cluster, 9);
        let mut state = VsrState::format(membership, root);
        if let Some(checkpoint) = checkpoint {
            state.checkpoint = checkpoint;
            state.commit_max = checkpoint.entry;
        }
        let recovered = Recovered {
            cluster,
            lineage: 9,
            replica: ReplicaId::new(0),
            disk: DiskId::new(100),
            incarnation: Incarnation::new(1),
            state,
            entries: vec![],
            scan_complete: true,
            uncertain_from: None,
        };
        let options = Options {
            timing: Timing::default(),
            ring,
            release: Release::new(1),
            seed: 1,
            mutations: Mutations::NONE,
        };
        let now =
            Now { monotonic: Instant::from_nanos(1_000_000_000), wall: Timestamp::from_nanos(1_000_000_000) };
        let mut bench = Bench {
            front: Front::open(options, limits, recovered, now),
            now,
            back: VecDeque::new(),
            halted: VecDeque::new(),
            answers: vec![],
            ops: vec![],
            disk: vec![],
            vault: vec![],
            frozen: vec![],
            installs: vec![],
            halts: None,
            disk_works: true,
            back_works: true,
        };
        bench.run();
        bench
    }

    fn input(&mut self, input: FrontInput) {
        self.front.handle(self.now, input);
    }

    fn submit(&mut self, token: u64, request: Vec<u8>) {
        self.submit_until(token, request, Duration::from_secs(5), false);
    }

    fn submit_until(&mut self, token: u64, request: Vec<u8>, patience: Duration, repeat: bool) {
        let deadline = self.now.monotonic + patience;
        self.input(FrontInput::Submit { token: Token(token), request, deadline, repeat });
    }

    /// Lets everything happen that can.
    fn run(&mut self) {
        loop {
            self.drain();
            if self.disk_works && !self.disk.is_empty() {
                let durable = self.disk.remove(0);
                self.input(FrontInput::Durable(durable));
            } else if self.back_works
                && let Some(work) = self.back.pop_front()
            {
                self.execute(work);
            } else {
                return;
            }
        }
    }

    fn drain(&mut self) {
        loop {
            match self.front.poll_output() {
                FrontOutput::Wait(_) => return,
                FrontOutput::Persist(Write::Append { number, .. }) => {
                    self.disk.push(Durable::Appended(number))
                }
                FrontOutput::Persist(Write::Superblock { number, .. }) => {
                    self.disk.push(Durable::Superblock(number));
                }
                FrontOutput::Back(work) => self.back.push_back(work),
                FrontOutput::Vault(task) => self.vault.push(task),
                FrontOutput::Answer(token, answer) => self.answers.push((token, answer)),
                FrontOutput::Send(..)
                | FrontOutput::GateConfirmed(_)
                | FrontOutput::GateClosed
                | FrontOutput::Event(_) => {}
            }
        }
    }

    fn execute(&mut self, work: ToBack) {
        match work {
            ToBack::Commit(entry) if self.halts.as_ref().is_some_and(|halted| halted.op <= entry.op()) => {
                self.halted.push_back(entry);
                if self.halted.len() == 1
                    && let Some(halted) = self.halts.clone()
                {
                    self.input(FrontInput::Back(ToFront::Halted(halted)));
                }
            }
            ToBack::Skip(skip) => {
                assert!(self.halts.take().is_some_and(|halted| halted.is_passed_by(&skip.skip)));
                for entry in std::mem::take(&mut self.halted) {
                    self.execute(ToBack::Commit(entry));
                }
            }
            ToBack::Commit(entry) => {
                let batch = Batch::split(entry.body()).expect("Front makes batches");
                let applied = Applied { op: entry.op(), digest: Digest(entry.op().value()) };
                let results = batch.requests.iter().map(|_| RequestResult::Done).collect();
                self.ops.push(entry);
                self.input(FrontInput::Back(ToFront::Executed { applied, results }));
            }
            ToBack::Query { token, at_least, query } => {
                let op = self.ops.last().map_or(Op::ROOT, Entry::op);
                assert!(at_least <= op, "Back has executed what the query waits for");
                self.input(FrontInput::Back(ToFront::Queried { token, op, answer: Ok(query) }));
            }
            ToBack::Freeze(entry) => self.frozen.push(entry),
            ToBack::Install(checkpoint) => self.installs.push(checkpoint),
            ToBack::Serving(_) => {}
        }
    }

    fn pass(&mut self, duration: Duration) {
        self.now.monotonic = self.now.monotonic + duration;
        self.now.wall = self.now.wall + duration;
        self.input(FrontInput::Tick);
        self.run();
    }

    fn answer(&self, token: u64) -> Option<&Answer> {
        let mut answers = self.answers.iter().filter(|(of, _)| *of == Token(token)).map(|(_, answer)| answer);
        let answer = answers.next();
        assert!(answers.next().is_none(), "one answer a token");
        answer
    }
}

fn command(size: usize) -> Vec<u8> {
    let session = SessionId(RequestId { op: 1, request: 0 });
    let origin = Origin::Session { session, number: RequestNumber(1) };
    Request::Command { origin, body: vec![0; size] }.encode()
}

fn batch_sizes(bench: &Bench) -> Vec<usize> {
    bench
        .ops
        .iter()
        .map(|entry| Batch::split(entry.body()).expect("Front makes batches").requests.len())
        .collect()
}

#[test]
fn requests_that_come_in_before_a_drain_become_one_op() {
    let mut bench = Bench::new(1, FrontLimits::default());
    for token in 0..10 {
        bench.submit(token, command(100));
    }
    bench.run();
    assert_eq!(batch_sizes(&bench), [10]);
    for token in 0..10 {
        assert_eq!(bench.answer(token), Some(&Answer::Decided(RequestResult::Done)));
    }
}

#[test]
fn requests_that_come_in_while_the_pipeline_is_full_share_the_next_op() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.disk_works = false;
    for token in 0..20 {
        bench.submit(token, command(100));
        bench.run();
    }
    bench.disk_works = true;
    bench.run();
    assert_eq!(batch_sizes(&bench), [1, 1, 1, 1, 1, 1, 1, 1, 12]);
}

#[test]
fn a_request_that_does_not_fit_the_batch_begins_the_next() {
    let mut bench = Bench::new(1, FrontLimits::default());
    for token in 0..4 {
        bench.submit(token, command(500_000));
    }
    bench.run();
    assert_eq!(batch_sizes(&bench), [2, 2]);
}

#[test]
fn a_request_larger_than_any_batch_is_too_large() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.submit(1, command(chronon_vsr::BODY_SIZE_MAX));
    bench.submit_until(2, command(chronon_vsr::BODY_SIZE_MAX), Duration::from_secs(1), true);
    bench.run();
    assert!(matches!(bench.answer(1), Some(Answer::NotExecuted(NotExecuted::TooLarge { .. }))));
    // Of a repeat nothing was learnt: the first attempt may have been something else's end.
    assert_eq!(bench.answer(2), Some(&Answer::Indeterminate));
    assert!(bench.ops.is_empty());
}

#[test]
fn a_full_queue_is_busy_and_a_backup_names_no_result() {
    let limits = FrontLimits { queue_requests_max: 2, ..FrontLimits::default() };
    let mut bench = Bench::new(1, limits);
    for token in 0..3 {
        bench.submit(token, command(10));
    }
    bench.run();
    let full = Answer::NotExecuted(NotExecuted::Busy {
        busy: Busy::QueueFull,
        retry_after: Duration::from_millis(50),
    });
    assert_eq!(bench.answer(2), Some(&full));
    assert_eq!(batch_sizes(&bench), [2]);

    // One of three, alone: whatever it believes itself to be, it can order nothing.
    let mut alone = Bench::new(3, FrontLimits::default());
    alone.submit_until(1, command(10), Duration::from_secs(1), false);
    alone.run();
    for _ in 0..30 {
        alone.pass(Duration::from_millis(100));
    }
    assert!(alone.ops.is_empty());
    assert!(matches!(alone.answer(1), Some(Answer::Indeterminate | Answer::NotExecuted(_))));
}

#[test]
fn a_request_whose_time_runs_out_in_the_queue_never_becomes_an_op() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.disk_works = false;
    for token in 0..8 {
        bench.submit(token, command(10));
        bench.run();
    }
    bench.submit_until(8, command(10), Duration::from_millis(20), false);
    bench.submit_until(9, command(10), Duration::from_millis(20), true);
    bench.run();
    bench.pass(Duration::from_millis(30));
    assert_eq!(bench.answer(8), Some(&Answer::NotExecuted(NotExecuted::Expired)));
    assert_eq!(bench.answer(9), Some(&Answer::Indeterminate));
    bench.disk_works = true;
    bench.run();
    assert_eq!(batch_sizes(&bench), [1; 8]);
}

#[test]
fn a_prepared_request_whose_time_runs_out_is_indeterminate_and_answered_once() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.disk_works = false;
    bench.submit_until(1, command(10), Duration::from_millis(20), false);
    bench.run();
    bench.pass(Duration::from_millis(30));
    assert_eq!(bench.answer(1), Some(&Answer::Indeterminate));
    bench.disk_works = true;
    bench.run();
    assert_eq!(batch_sizes(&bench), [1]);
    assert_eq!(bench.answer(1), Some(&Answer::Indeterminate));
}

#[test]
fn a_back_that_is_behind_stops_the_intake_and_holds_a_bounded_number_of_ops() {
    let limits = FrontLimits { behind_ops_max: 4, ..FrontLimits::default() };
    let mut bench = Bench::new(1, limits);
    bench.back_works = false;
    for token in 0..50 {
        bench.submit(token, command(10));
        bench.run();
    }
    let handed = bench.back.iter().filter(|work| matches!(work, ToBack::Commit(_))).count();
    assert_eq!(handed, 4);
    bench.back_works = true;
    bench.run();
    assert_eq!(batch_sizes(&bench).iter().sum::<usize>(), 50);
}

#[test]
fn a_linearizable_query_reflects_what_was_acknowledged_before_it() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.submit(1, command(10));
    bench.run();
    let deadline = bench.now.monotonic + Duration::from_secs(1);
    for (token, consistency) in
        [(2, Consistency::Linearizable), (3, Consistency::Local), (4, Consistency::AtLeast(2))]
    {
        bench.input(FrontInput::Query { token: Token(token), query: vec![1], consistency, deadline });
    }
    bench.run();
    assert_eq!(bench.answer(2), Some(&Answer::Answered { op: 1, answer: vec![1] }));
    assert_eq!(bench.answer(3), Some(&Answer::Answered { op: 1, answer: vec![1] }));
    assert_eq!(bench.answer(4), None);
    bench.submit(5, command(10));
    bench.run();
    assert_eq!(bench.answer(4), Some(&Answer::Answered { op: 2, answer: vec![1] }));
}

#[test]
fn a_query_for_an_op_that_never_comes_expires() {
    let mut bench = Bench::new(1, FrontLimits::default());
    let deadline = bench.now.monotonic + Duration::from_millis(50);
    let consistency = Consistency::AtLeast(1_000);
    bench.input(FrontInput::Query { token: Token(1), query: vec![1], consistency, deadline });
    bench.run();
    bench.pass(Duration::from_millis(60));
    assert_eq!(bench.answer(1), Some(&Answer::NotExecuted(NotExecuted::Expired)));
}

fn checkpoint_at(op: u64) -> Checkpoint {
    Checkpoint {
        entry: OpRef { op: Op::new(op), checksum: Checksum::of(b"entry") },
        end: op * chronon_vsr::charge(100),
        timestamp: Timestamp::from_nanos(500),
        digest: Digest(5),
        release: Release::new(1),
        root: Some(Checksum::of_chunk(b"list")),
    }
}

/// Every due checkpoint is frozen right behind its op, and the next one waits until this one is durable.
#[test]
fn a_state_is_frozen_right_behind_its_op_and_the_log_goes_on_once_it_is_durable() {
    let ring = Ring::new(chronon_vsr::charge(1000) * 16, 1000).unwrap();
    let mut bench = Bench::from(1, FrontLimits::default(), None, ring);
    let mut token = 0;
    while bench.ops.len() < 100 {
        token += 1;
        bench.submit(token, command(100));
        bench.run();
        bench.pass(Duration::from_millis(1));
        bench.run();
        if let Some(entry) = bench.frozen.pop() {
            assert_eq!(bench.ops.last().map(Entry::op), Some(entry.op));
            let offset = bench.ops.last().unwrap().header().offset;
            assert!(ring.is_checkpoint(offset, bench.ops.last().unwrap().header().end()));
            let (digest, root) = (Digest(entry.op.value()), Checksum::of_chunk(b"list"));
            bench.input(FrontInput::Vault(VaultReport::Frozen { entry, digest, root }));
            bench.run();
            assert_eq!(bench.front.replica().checkpoint().entry, entry);
        }
    }
    assert!(bench.frozen.is_empty());
    assert!(bench.answers.iter().all(|(_, answer)| matches!(answer, Answer::Decided(_))));
}

/// Nothing reaches Back before the state is there that it would be executed on.
#[test]
fn a_start_from_a_checkpoint_hands_nothing_over_before_its_state_is_there() {
    let checkpoint = checkpoint_at(9);
    let mut bench = Bench::from(1, FrontLimits::default(), Some(checkpoint), Ring::DEFAULT);
    assert_eq!(bench.installs, [checkpoint]);
    let deadline = bench.now.monotonic + Duration::from_secs(5);
    let (query, consistency) = (b"q".to_vec(), Consistency::Local);
    bench.input(FrontInput::Query { token: Token(1), query, consistency, deadline });
    bench.submit(2, command(100));
    bench.run();
    assert!(bench.ops.is_empty());
    assert!(bench.answers.is_empty());

    // A chunk is damaged, and is looked for where there is nobody to ask; then it is there after all.
    let root = checkpoint.root.unwrap();
    bench.input(FrontInput::Vault(VaultReport::Missing { root, ids: vec![root], in_all: 0 }));
    bench.run();
    bench.input(FrontInput::Vault(VaultReport::Held { root }));
    bench.run();
    assert_eq!(bench.installs, [checkpoint, checkpoint]);

    let applied = Applied { op: checkpoint.entry.op, digest: checkpoint.digest };
    bench.input(FrontInput::Back(ToFront::Installed { applied }));
    bench.run();
    assert_eq!(bench.ops.iter().map(Entry::op).collect::<Vec<_>>(), [Op::new(10)]);
    assert_eq!(bench.answers.len(), 2);
}

fn halted_at(op: u64) -> Halted {
    Halted { op: Op::new(op), culprit: Culprit::Request(0), fingerprint: [1; 32], message: "no".into() }
}

fn skip(halted: &Halted) -> Skip {
    halted.skip("ada".into(), "a bug".into())
}

fn busy_halted(answer: Option<&Answer>) -> bool {
    matches!(answer, Some(Answer::NotExecuted(NotExecuted::Busy { busy: Busy::Halted, .. })))
}

// Scenario 39.
#[test]
fn while_execution_has_halted_only_what_leads_past_it_is_ordered() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.submit(1, command(100));
    bench.run();
    let halted = halted_at(2);
    bench.halts = Some(halted.clone());
    bench.submit(2, command(100));
    bench.run();
    assert_eq!(bench.front.halted(), Some(&halted));
    assert_eq!(bench.answer(2), None, "it is in the log, and nobody knows what becomes of it");
    let head = bench.front.replica().head();

    bench.submit(3, command(100));
    bench.input(FrontInput::Back(ToFront::Propose(Request::Tick.encode())));
    let other = Skip { op: 1, ..skip(&halted) };
    bench.submit(4, Request::Skip(other).encode());
    bench.run();
    assert!(busy_halted(bench.answer(3)));
    let Some(Answer::NotExecuted(NotExecuted::Refused { code, message })) = bench.answer(4) else {
        panic!("{:?}", bench.answer(4))
    };
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("halted_elsewhere", "execution has halted at op 2, request 0")
    );
    assert_eq!(bench.front.replica().head(), head);

    bench.submit(5, Request::Skip(skip(&halted)).encode());
    bench.run();
    assert_eq!(bench.front.halted(), None);
    assert_eq!(bench.front.replica().head(), head.next());
    for token in [2, 5] {
        assert_eq!(bench.answer(token), Some(&Answer::Decided(RequestResult::Done)));
    }
    bench.submit(6, command(100));
    bench.run();
    assert_eq!(bench.answer(6), Some(&Answer::Decided(RequestResult::Done)));
}

// Scenario 39.
#[test]
fn while_execution_has_halted_a_read_that_needs_more_is_refused_and_others_are_answered() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.submit(1, command(100));
    bench.run();
    bench.halts = Some(halted_at(2));
    bench.submit(2, command(100));
    bench.run();
    let deadline = bench.now.monotonic + Duration::from_secs(5);
    let asked = [
        (3, Consistency::Linearizable),
        (4, Consistency::AtLeast(2)),
        (5, Consistency::AtLeast(1)),
        (6, Consistency::Local),
    ];
    for (token, consistency) in asked {
        let query = vec![token as u8];
        bench.input(FrontInput::Query { token: Token(token), query, consistency, deadline });
    }
    bench.run();
    for token in [3, 4] {
        assert!(busy_halted(bench.answer(token)), "{token}: {:?}", bench.answer(token));
    }
    for token in [5, 6] {
        let answer = vec![token as u8];
        assert_eq!(bench.answer(token), Some(&Answer::Answered { op: 1, answer }));
    }
}

#[test]
fn what_waits_to_be_ordered_when_execution_halts_hears_that_it_is_not_executed() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.halts = Some(halted_at(1));
    bench.back_works = false;
    bench.submit(0, command(100));
    bench.run();
    // Now the pipeline fills, and the rest wait to be ordered.
    bench.disk_works = false;
    for token in 1..20 {
        bench.submit(token, command(100));
        bench.run();
    }
    bench.back_works = true;
    bench.run();
    let refused = (0..20).filter(|token| busy_halted(bench.answer(*token))).count();
    assert!((1..20).contains(&refused), "{refused}");
    assert_eq!(bench.answers.len(), refused, "of the others nobody knows yet");
    bench.submit(100, Request::Skip(skip(&halted_at(1))).encode());
    bench.disk_works = true;
    bench.run();
    assert_eq!(
        bench.answers.iter().filter(|(_, answer)| matches!(answer, Answer::Decided(_))).count(),
        21 - refused
    );
}

/// A skip that is in the log already is found whenever Back comes to halt: a replay waits for nobody.
#[test]
fn a_skip_that_is_committed_before_back_halts_is_found_at_once() {
    let mut bench = Bench::new(1, FrontLimits::default());
    bench.back_works = false;
    bench.submit(1, command(100));
    bench.run();
    bench.submit(2, Request::Skip(Skip { fingerprint: [9; 32], ..skip(&halted_at(1)) }).encode());
    bench.run();
    bench.submit(3, Request::Skip(skip(&halted_at(1))).encode());
    bench.run();
    bench.halts = Some(halted_at(1));
    bench.back_works = true;
    bench.run();
    assert_eq!(bench.front.halted(), None);
    assert_eq!(bench.ops.len(), 3);
}

/// Back halted before it heard of the checkpoint that carries it past the op.
#[test]
fn a_halt_that_a_checkpoint_overtakes_is_none() {
    let checkpoint = checkpoint_at(9);
    let mut bench = Bench::from(1, FrontLimits::default(), Some(checkpoint), Ring::DEFAULT);
    bench.input(FrontInput::Back(ToFront::Halted(halted_at(7))));
    bench.run();
    assert_eq!(bench.front.halted(), None);
}
