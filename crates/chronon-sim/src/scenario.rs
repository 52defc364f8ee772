//! Stories: a calm cluster to which a test does things, one after another, and looks what became of it.
//!
//! ```text
//! let mut c = Cluster::new(3).seed(1);
//! c.submit(2);
//! c.replica(R1).crash().corrupt(Prepare(2)).restart();
//! c.settle();
//! c.assert_committed(ALL, 2).assert_event(R1, |e| matches!(e, Event::EntryRepaired { .. }));
//! ```

use chronon_kernel::{Consistency, Contract, Origin, Skip};
use chronon_storage::File;
use chronon_vsr::{Duration, Event, Op, ReplicaId, Ring};

use crate::world::{index, unnamed};
use crate::{
    BankWorkload, CallKind, Completed, Config, Envelope, Fate, Fault, Harm, Region, TraceMode, Workload,
    World,
};

/// Bytes of one copy of the superblock.
const SUPERBLOCK_COPY: u64 = 16 * 1024;

/// The first replica.
pub const R0: ReplicaId = ReplicaId::new(0);
/// The second replica.
pub const R1: ReplicaId = ReplicaId::new(1);
/// The third replica.
pub const R2: ReplicaId = ReplicaId::new(2);
/// The fourth replica.
pub const R3: ReplicaId = ReplicaId::new(3);
/// The fifth replica.
pub const R4: ReplicaId = ReplicaId::new(4);
/// The sixth replica.
pub const R5: ReplicaId = ReplicaId::new(5);
/// Every replica that there is.
pub const ALL: &[ReplicaId] = &[R0, R1, R2, R3, R4, R5];

/// How long a story waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Something on a disk that a story can damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The body of this op's entry in the WAL, every copy.
    Prepare(u64),
    /// One of the four copies of the superblock.
    SuperblockCopy(u64),
    /// Every chunk of every checkpoint.
    Chunks,
}

pub use Target::{Chunks, Prepare, SuperblockCopy};

/// A cluster in a test's hands. It starts when it is first asked for something; until then it can be shaped.
pub struct Cluster {
    config: Config,
    workload: Option<Box<dyn Workload>>,
    world: Option<World>,
    next_client: u32,
}

impl Cluster {
    /// A calm cluster of so many replicas that runs the bank, whose webhook dedups by key for a day.
    pub fn new(replicas: usize) -> Cluster {
        Cluster::with_contract(
            replicas,
            Contract::Idempotent { window: Duration::from_secs(86_400), replays_errors: false },
        )
    }

    /// A calm cluster of so many replicas that runs the bank, with a webhook under this contract.
    pub fn with_contract(replicas: usize, contract: Contract) -> Cluster {
        Cluster::of(replicas, Box::new(BankWorkload::new(contract)))
    }

    /// A calm cluster of so many replicas that runs this workload.
    pub fn of(replicas: usize, workload: Box<dyn Workload>) -> Cluster {
        let mut config = Config::calm(replicas, 1);
        config.clients.clients = 8;
        config.trace = TraceMode::Lines;
        Cluster { config, workload: Some(workload), world: None, next_client: 0 }
    }

    /// Draws everything random from this seed.
    pub fn seed(mut self, seed: u64) -> Cluster {
        self.config.seed = seed;
        self
    }

    /// Changes what the cluster is made of.
    pub fn with(mut self, change: impl FnOnce(&mut Config)) -> Cluster {
        change(&mut self.config);
        self
    }

    /// The world, to do what this has no words for. The first look starts it and waits until it is set up.
    pub fn world(&mut self) -> &mut World {
        if self.world.is_none() {
            let workload = self.workload.take().expect("taken once, here");
            self.world = Some(World::new(self.config, workload));
            self.until("the cluster is set up", |world| world.is_set_up());
        }
        self.world.as_mut().expect("it was just made")
    }

    /// So many commands, from several clients at once; waits until each is answered.
    pub fn submit(&mut self, commands: u32) -> &mut Cluster {
        self.start(commands);
        self.until("every command is answered", World::clients_done)
    }

    /// So many commands, from several clients at once, without waiting.
    pub fn start(&mut self, commands: u32) -> &mut Cluster {
        for _ in 0..commands {
            let (workload, prng) = self.world().workload();
            let body = workload.command(prng);
            self.call(CallKind::Command { origin: unnamed(), body });
        }
        self
    }

    /// One command under this Idempotency-Key, without waiting. The same key gets the same command.
    pub fn start_with_key(&mut self, principal: &str, key: &str, body: Vec<u8>) -> &mut Cluster {
        let origin = Origin::Key { principal: principal.to_owned(), key: key.to_owned() };
        self.call(CallKind::Command { origin, body });
        self
    }

    /// Somebody freezes every sink, or thaws it; waits for the answer.
    pub fn freeze(&mut self, frozen: bool) -> &mut Cluster {
        for name in self.world().sinks().keys().cloned().collect::<Vec<_>>() {
            self.world().set_frozen(&name, frozen);
        }
        self.until("the sinks are set", World::clients_done)
    }

    /// A command drawn from the workload, to be used with a key.
    pub fn draw_command(&mut self) -> Vec<u8> {
        let (workload, prng) = self.world().workload();
        workload.command(prng)
    }

    /// One linearizable read, without waiting.
    pub fn start_read(&mut self) -> &mut Cluster {
        self.query(Consistency::Linearizable);
        self
    }

    /// A skip, without waiting, from a client that has nothing else to do.
    pub fn skip(&mut self, skip: Skip) -> &mut Cluster {
        let clients = &self.world().clients[1..];
        let idle = clients.iter().find(|client| client.is_done()).expect("a client has nothing to do").number;
        self.world().ask(idle, CallKind::Skip(Box::new(skip)));
        self
    }

    /// A query drawn from the workload. Returns the client who asks it.
    fn query(&mut self, consistency: Consistency) -> u32 {
        let (workload, prng) = self.world().workload();
        let query = workload.query(prng);
        self.call(CallKind::Query { consistency, query })
    }

    /// The next client's turn. Returns its number.
    fn call(&mut self, kind: CallKind) -> u32 {
        let clients = self.config.clients.clients;
        self.next_client = self.next_client % clients + 1;
        let client = self.next_client;
        self.world().ask(client, kind);
        client
    }

    /// Lets time pass.
    pub fn run(&mut self, duration: Duration) -> &mut Cluster {
        self.world().run_for(duration);
        self.check()
    }

    /// Lets time pass until this holds; fails when it does not within a minute.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&World) -> bool) -> &mut Cluster {
        let world = self.world.as_mut().expect("whoever waits has started it");
        let end = world.now() + PATIENCE;
        while !holds(world) {
            if world.violation().is_some() {
                break;
            }
            if end <= world.now() {
                let tail = self.tail();
                panic!("{tail}\nwaited {PATIENCE:?} in vain: {what}");
            }
            // Event by event: a story's next act comes right after what it waited for.
            if !world.step() {
                break;
            }
        }
        self.check()
    }

    /// Waits until all is quiet, then asks every judge.
    pub fn settle(&mut self) -> &mut Cluster {
        self.world();
        let end = self.world().now() + PATIENCE;
        while let Err(why) = self.world().is_quiet() {
            if end <= self.world().now() {
                let tail = self.tail();
                panic!("{tail}\nit does not settle: {why}");
            }
            self.run(Duration::from_millis(10));
        }
        if let Err(violation) = self.world().check_quiet() {
            let tail = self.tail();
            panic!("{tail}\n{violation}");
        }
        self
    }

    /// One replica, to do things to.
    pub fn replica(&mut self, id: ReplicaId) -> Hand<'_> {
        self.world();
        Hand { cluster: self, id }
    }

    /// A log so small that it wraps every few ops, with a checkpoint about every `ops` ops.
    pub fn tiny_log(self, ops: u64) -> Cluster {
        let charge_max = chronon_vsr::charge(8 * 1024);
        let interval = (ops * chronon_vsr::charge(200)).max(charge_max);
        let log = 2 * interval + chronon_vsr::PIPELINE_MAX * charge_max;
        self.with(|config| {
            config.ring = Ring { log, checkpoint_interval: interval, slack: interval, charge_max };
        })
    }

    /// The op of a replica's newest durable checkpoint; none before its first.
    pub fn checkpoint(&mut self, replica: ReplicaId) -> Option<Op> {
        self.world().checkpoints().durable(replica)
    }

    /// The lowest op in a replica's log.
    pub fn log_start(&mut self, replica: ReplicaId) -> Op {
        self.world().replica(replica).map_or(Op::ROOT, chronon_vsr::Replica::log_start)
    }

    /// Cuts the power of every replica at once.
    pub fn power_off_all(&mut self) -> &mut Cluster {
        for replica in self.world().replicas() {
            self.world().inflict(Fault::PowerOff(replica));
        }
        self
    }

    /// Starts every replica that does not run.
    pub fn start_all(&mut self) -> &mut Cluster {
        for replica in self.world().replicas() {
            self.world().inflict(Fault::Start(replica));
        }
        self
    }

    /// This replica does not run, and said why in words that hold these.
    #[track_caller]
    pub fn assert_refuses(&mut self, replica: ReplicaId, words: &str) -> &mut Cluster {
        let refusal = self.world().refusal(replica).map(str::to_owned);
        if self.world().is_running(replica) || !refusal.as_ref().is_some_and(|said| said.contains(words)) {
            let tail = self.tail();
            panic!("{tail}\nR{replica} was to refuse with {words:?} and said {refusal:?}");
        }
        self
    }

    /// Cuts every wire between these and the rest, both ways.
    pub fn isolate(&mut self, camp: &[ReplicaId]) -> &mut Cluster {
        for from in self.world().replicas() {
            for to in self.world().replicas() {
                if camp.contains(&from) != camp.contains(&to) {
                    self.world().inflict(Fault::Cut(from, to));
                }
            }
        }
        self
    }

    /// Cuts one wire, one way.
    pub fn cut(&mut self, from: ReplicaId, to: ReplicaId) -> &mut Cluster {
        self.world().inflict(Fault::Cut(from, to));
        self
    }

    /// All wires are whole again.
    pub fn heal(&mut self) -> &mut Cluster {
        self.world().inflict(Fault::MendAll);
        self
    }

    /// Decides the fate of every message from now on.
    pub fn filter(&mut self, filter: impl FnMut(&Envelope) -> Fate + 'static) -> &mut Cluster {
        self.world().network.set_filter(Some(Box::new(filter)));
        self
    }

    /// Messages go their way again; what a filter held stays held.
    pub fn unfilter(&mut self) -> &mut Cluster {
        self.world().network.set_filter(None);
        self
    }

    /// What filters hold.
    pub fn held(&mut self) -> &[Envelope] {
        self.world().network.held()
    }

    /// Lets what was held go its way.
    pub fn release(&mut self) -> &mut Cluster {
        self.world().release_held();
        self
    }

    /// Takes what was held, to deliver it when the story wants it.
    pub fn take_held(&mut self) -> Vec<Envelope> {
        self.world().network.take_held()
    }

    /// The primary that serves. Waits for one.
    pub fn primary(&mut self) -> ReplicaId {
        self.world();
        self.until("somebody serves as the primary", |world| world.primary().is_some());
        self.world().primary().expect("just waited for")
    }

    /// Everybody but the primary that serves, in order.
    pub fn backups(&mut self) -> Vec<ReplicaId> {
        let primary = self.primary();
        self.world().replicas().into_iter().filter(|replica| *replica != primary).collect()
    }

    /// The newest op that any replica executed.
    pub fn head(&mut self) -> Op {
        self.world().commits().head()
    }

    /// The calls that ended well since the beginning.
    pub fn completed(&mut self) -> &[Completed] {
        self.world().history().completed()
    }

    /// Each of these replicas runs and has applied exactly so many commands, those of the set-up not counted.
    #[track_caller]
    pub fn assert_committed(&mut self, replicas: &[ReplicaId], commands: u64) -> &mut Cluster {
        let set_up = self.world().set_up_commands() as u64;
        for replica in self.world().replicas().into_iter().filter(|replica| replicas.contains(replica)) {
            let applied = self.world().engine(replica).map(|engine| engine.status().commands);
            if applied != Some(set_up + commands) {
                let tail = self.tail();
                panic!(
                    "{tail}\nR{replica} applied {applied:?} commands, {set_up} + {commands} were expected"
                );
            }
        }
        self
    }

    /// This replica had such an event.
    #[track_caller]
    pub fn assert_event(&mut self, replica: ReplicaId, is: impl Fn(&Event) -> bool) -> &mut Cluster {
        if self.count_events(&[replica], is) == 0 {
            let tail = self.tail();
            panic!("{tail}\nR{replica} never had the event");
        }
        self
    }

    /// No replica had such an event.
    #[track_caller]
    pub fn assert_no_event(&mut self, is: impl Fn(&Event) -> bool) -> &mut Cluster {
        let times = self.count_events(ALL, is);
        if times != 0 {
            let tail = self.tail();
            panic!("{tail}\nthe event happened {times} times");
        }
        self
    }

    /// How often these replicas had such an event.
    pub fn count_events(&mut self, replicas: &[ReplicaId], is: impl Fn(&Event) -> bool) -> usize {
        let events = self.world().events().iter();
        events.filter(|(_, replica, event)| replicas.contains(replica) && is(event)).count()
    }

    /// The end of the trace, for the message of a failure.
    pub fn tail(&mut self) -> String {
        let world = self.world.as_ref().expect("whoever asks has started it");
        let lines = world.trace().lines();
        let shown = &lines[lines.len().saturating_sub(120)..];
        format!(
            "… the last {} of {} lines, seed {}\n{}",
            shown.len(),
            lines.len(),
            self.config.seed,
            shown.join("\n")
        )
    }

    #[track_caller]
    fn check(&mut self) -> &mut Cluster {
        let world = self.world.as_ref().expect("whoever checks has started it");
        if let Some(violation) = world.violation().cloned() {
            let tail = self.tail();
            panic!("{tail}\n{violation}");
        }
        self
    }
}

/// One replica in a test's hands.
pub struct Hand<'a> {
    cluster: &'a mut Cluster,
    id: ReplicaId,
}

impl Hand<'_> {
    fn inflict(self, fault: Fault) -> Self {
        self.cluster.world().inflict(fault);
        self
    }

    /// Kills the process.
    pub fn crash(self) -> Self {
        let fault = Fault::Kill(self.id);
        self.inflict(fault)
    }

    /// Takes the machine's power: what was not flushed is lost or torn.
    pub fn power_off(self) -> Self {
        let fault = Fault::PowerOff(self.id);
        self.inflict(fault)
    }

    /// Starts it again.
    pub fn restart(self) -> Self {
        let fault = Fault::Start(self.id);
        self.inflict(fault)
    }

    /// Stops the process (SIGSTOP).
    pub fn pause(self) -> Self {
        let fault = Fault::Pause(self.id);
        self.inflict(fault)
    }

    /// Lets the process go on (SIGCONT).
    pub fn resume(self) -> Self {
        let fault = Fault::Resume(self.id);
        self.inflict(fault)
    }

    /// Every step of its disk takes this much longer from now on.
    pub fn stall(self, stall: Duration) -> Self {
        let fault = Fault::DiskStall(self.id, stall);
        self.inflict(fault)
    }

    /// It takes this long to execute each op from now on.
    pub fn slow(self, each: Duration) -> Self {
        let fault = Fault::SlowExecution(self.id, each);
        self.inflict(fault)
    }

    /// The next write or flush of its disk fails.
    pub fn fail_disk(self) -> Self {
        let fault = Fault::DiskError(self.id);
        self.inflict(fault)
    }

    /// Somebody asks it to read, and does not wait.
    pub fn read(self, consistency: Consistency) -> Self {
        let client = self.cluster.query(consistency);
        self.cluster.world().clients[client as usize].target = self.id;
        self
    }

    /// It is asked to give its primacy up.
    pub fn step_down(self) -> Self {
        let fault = Fault::StepDown(self.id);
        self.inflict(fault)
    }

    /// It never comes back, and nothing waits for it.
    pub fn bury(self) -> Self {
        let this = self.crash();
        let id = this.id;
        this.cluster.world().forsake(id);
        this
    }

    /// Its disk has no room for checkpoints any more.
    pub fn fill_disk(self) -> Self {
        let fault = Fault::DiskFull(self.id, true);
        self.inflict(fault)
    }

    /// Its disk has room again.
    pub fn empty_disk(self) -> Self {
        let fault = Fault::DiskFull(self.id, false);
        self.inflict(fault)
    }

    /// Does harm to a page of its disk, the one given by this number.
    pub fn harm(self, region: Region, harm: Harm, which: u64) -> Self {
        let fault = Fault::Harm(self.id, region, harm, which);
        self.inflict(fault)
    }

    /// Flips a bit of something on its disk. Stop it first.
    #[track_caller]
    pub fn corrupt(self, target: Target) -> Self {
        let world = self.cluster.world();
        let entry = match target {
            Prepare(op) => Some(world.commits().get(Op::new(op)).expect("the op is committed").entry.clone()),
            SuperblockCopy(_) | Chunks => None,
        };
        world.promises.on_damage(self.id);
        let machine = &mut world.machines[index(self.id)];
        machine.beyond = true;
        let places: Vec<(File, u64)> = match target {
            Prepare(_) => {
                let needle = entry.as_ref().map_or(&[][..], |entry| entry.body());
                machine.disk.find(File::Wal, needle).into_iter().map(|place| (File::Wal, place)).collect()
            }
            SuperblockCopy(copy) => vec![(File::Superblock, copy * SUPERBLOCK_COPY + 100)],
            Chunks => {
                machine.disk.written_packs().into_iter().map(|(file, page)| (file, page + 100)).collect()
            }
        };
        assert!(!places.is_empty(), "{target:?} is on the disk");
        for (file, place) in places {
            assert!(machine.disk.flip(file, place, 3));
        }
        self
    }
}
