//! Breadth-first search through the states of a small cluster of real replicas.
//!
//! What a replica does with an input is a function of its own state, so each (state of one replica, input) is computed
//! once and remembered; the search itself is over numbers. The network never forgets: whatever was sent may arrive at
//! any time, again and again, or never. So it loses, delays, repeats and reorders. Disks flush one write at a time, in
//! order; a crash loses what is not flushed. Time stands still but for ticks, which the search takes as it likes.

use std::boxed::Box;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::format;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use crate::{
    Checksum, EntryHeader, Epoch, Member, Membership, Message, Mutations, Op, OpRef, Payload, Quorums,
    Recipients, ReplicaId, Stamp,
};

use super::node::{Action, Facts, Node, announced_log, disk_of};

/// Replicas at most.
const NODES_MAX: usize = 3;
/// Messages that a run may know.
const MESSAGES_MAX: usize = 512;

/// How far the search goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) replicas: u8,
    /// Entries prepared, in all.
    pub(super) ops: u8,
    /// Views beyond the one in which it begins.
    pub(super) views: u8,
    /// Replicas that suspect their primary, or give their primacy up, in all.
    pub(super) suspicions: u8,
    /// Crashes, each with a restart, in all.
    pub(super) crashes: u8,
    /// Durable entries that are damaged when their replica restarts, in all.
    pub(super) rots: u8,
    /// Ticks, in all.
    pub(super) ticks: u8,
}

/// What the search did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Different states of the cluster.
    pub(super) states: usize,
    /// Different states of one replica with its disk.
    pub(super) replicas: usize,
    /// Inputs that real replicas were given.
    pub(super) inputs: usize,
    /// Different messages, by receiver.
    pub(super) messages: usize,
    /// States in which something is known committed.
    pub(super) committed: usize,
    /// The longest of the shortest ways to a state.
    pub(super) steps: usize,
}

/// A state that must not be, and the shortest way to it.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    what: String,
    trace: Vec<String>,
}

/// What an action leads to: the replica's new state and the messages that it sent, or why that must not be.
type Step = Result<(u32, Box<[u16]>), String>;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.what)?;
        self.trace.iter().try_for_each(|step| write!(f, "\n    {step}"))
    }
}

/// One state of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    nodes: [u32; NODES_MAX],
    /// Every message ever sent.
    network: [u64; MESSAGES_MAX / 64],
    /// What was ever known committed, by its number.
    history: u32,
    ops: u8,
    suspicions: u8,
    crashes: u8,
    rots: u8,
    ticks: u8,
}

pub(super) struct Search {
    bounds: Bounds,
    mutations: Mutations,
    first_view: u64,
    nodes: Vec<Node>,
    facts: Vec<Facts>,
    node_numbers: Map<u128, u32>,
    messages: Vec<(u8, Message)>,
    message_numbers: HashMap<(u8, Message), u16>,
    /// The logs that StartViews tell, by the number of the message.
    start_views: Vec<(u16, Stamp, Vec<OpRef>)>,
    /// What was ever known committed, and the view in which that was first seen: committed then, or earlier.
    histories: Vec<BTreeMap<Op, (Checksum, u64)>>,
    steps: Map<(u32, Action), Step>,
    seen: HashSet<u128, BuildHasherDefault<Mix>>,
    /// How each state was first reached: from which one, and by what happening to whom.
    ways: Vec<(u32, u8, Action)>,
    tally: Tally,
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// A fast hasher for keys that nobody chooses against us.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
    }
}

/// 128 bits that stand for a value: two hashes. That two states share them is less likely than that the machine errs.
fn fingerprint(value: &impl Hash) -> u128 {
    let (mut low, mut high) = (Mix(1), Mix(0x51_7c_c1_b7));
    value.hash(&mut low);
    value.hash(&mut high);
    u128::from(high.0) << 64 | u128::from(low.0)
}

impl Search {
    /// All states within the bounds, or the first one found that must not be.
    pub(super) fn run(bounds: Bounds, mutations: Mutations) -> Result<Tally, Broken> {
        let mut search = Search::new(bounds, mutations);
        let first = search.begin();
        let mut next = VecDeque::from([(0_u32, first)]);
        search.seen.insert(fingerprint(&first));
        search.ways.push((0, 0, Action::Tick));
        while let Some((number, state)) = next.pop_front() {
            let reached = &mut |search: &mut Search, node: usize, action: Action, state: State| {
                if search.seen.insert(fingerprint(&state)) {
                    next.push_back((search.ways.len() as u32, state));
                    search.ways.push((number, node as u8, action));
                    search.tally.committed += usize::from(state.history != 0);
                }
            };
            if let Err((node, action, what)) = search.expand(&state, reached) {
                return Err(search.broken(number, node, action, what));
            }
        }
        search.tally.states = search.ways.len();
        search.tally.steps = search.way_to(search.ways.len() as u32 - 1).len();
        search.tally.replicas = search.nodes.len();
        search.tally.messages = search.messages.len();
        Ok(search.tally)
    }

    fn new(bounds: Bounds, mutations: Mutations) -> Search {
        assert!(usize::from(bounds.replicas) <= NODES_MAX);
        Search {
            bounds,
            mutations,
            first_view: 0,
            nodes: Vec::new(),
            facts: Vec::new(),
            node_numbers: Map::default(),
            messages: Vec::new(),
            message_numbers: HashMap::new(),
            start_views: Vec::new(),
            histories: vec![BTreeMap::new()],
            steps: Map::default(),
            seen: HashSet::default(),
            ways: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// A new cluster, gone through its first view change: everybody is normal, and nothing is under way.
    fn begin(&mut self) -> State {
        let all = 0..self.bounds.replicas;
        let voters: Vec<Member> = all
            .clone()
            .map(ReplicaId::new)
            .map(|replica| Member { replica, disk: disk_of(replica) })
            .collect();
        let membership = Membership { epoch: Epoch::new(0), voters, learners: Vec::new() };
        let mut nodes: Vec<Node> = all.map(ReplicaId::new).map(|me| Node::open(me, &membership)).collect();
        let mut under_way: VecDeque<(usize, Message)> = VecDeque::new();
        let count = nodes.len();
        let post = |from: usize, sent: Vec<(Recipients, Message)>, queue: &mut VecDeque<(usize, Message)>| {
            for (to, message) in sent {
                for receiver in receivers(to, from, count) {
                    queue.push_back((receiver, message.clone()));
                }
            }
        };
        for (node, replica) in nodes.iter_mut().enumerate() {
            post(node, replica.speak().expect("a new replica breaks nothing"), &mut under_way);
        }
        for (node, peer) in (0..count).flat_map(|node| (0..count).map(move |peer| (node, peer))) {
            if node != peer {
                let meet = Action::Meet { peer: peer as u8, incarnation: 1 };
                let sent = nodes[node].act(meet, None).expect("meeting breaks nothing");
                post(node, sent, &mut under_way);
            }
        }
        loop {
            if let Some((to, message)) = under_way.pop_front() {
                let sent =
                    nodes[to].act(Action::Deliver(0), Some(message)).expect("a quiet start breaks nothing");
                post(to, sent, &mut under_way);
            } else if let Some(node) = nodes.iter().position(|node| node.facts().writes) {
                let sent = nodes[node].act(Action::Flush, None).expect("a flush breaks nothing");
                post(node, sent, &mut under_way);
            } else {
                break;
            }
        }
        let mut state = State {
            nodes: [0; NODES_MAX],
            network: [0; MESSAGES_MAX / 64],
            history: 0,
            ops: 0,
            suspicions: 0,
            crashes: 0,
            rots: 0,
            ticks: 0,
        };
        for (at, mut node) in nodes.into_iter().enumerate() {
            self.first_view = node.begin(self.mutations);
            state.nodes[at] = self.number_of(node);
        }
        state
    }

    fn number_of(&mut self, node: Node) -> u32 {
        let Search { nodes, facts, node_numbers, .. } = self;
        *node_numbers.entry(fingerprint(&node)).or_insert_with(|| {
            facts.push(node.facts());
            nodes.push(node);
            (nodes.len() - 1) as u32
        })
    }

    fn number_of_message(&mut self, to: u8, message: Message) -> u16 {
        let key = (to, message);
        if let Some(number) = self.message_numbers.get(&key) {
            return *number;
        }
        let number = self.messages.len() as u16;
        assert!(usize::from(number) < MESSAGES_MAX, "more messages than the search has room for");
        if let Payload::StartView { commit_max, suffix, .. } = &key.1.payload {
            self.start_views.push((number, key.1.stamp, announced_log(*commit_max, suffix)));
        }
        self.messages.push(key.clone());
        self.message_numbers.insert(key, number);
        number
    }

    /// What an action leads one replica to.
    fn step(&mut self, node: u32, action: Action) -> Step {
        if let Some(step) = self.steps.get(&(node, action)) {
            return step.clone();
        }
        self.tally.inputs += 1;
        let mut next = self.nodes[node as usize].clone();
        let message = match action {
            Action::Deliver(number) => Some(self.messages[usize::from(number)].1.clone()),
            _ => None,
        };
        let from = next.me().value();
        let acted = catch_unwind(AssertUnwindSafe(|| next.act(action, message)));
        let step = match acted {
            Err(panic) => {
                let told = panic.downcast_ref::<String>().cloned();
                let told = told.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Err(format!("an assertion of the replica: {}", told.unwrap_or_default()))
            }
            Ok(Err(broken)) => Err(broken),
            Ok(Ok(sent)) => {
                let count = usize::from(self.bounds.replicas);
                let mut numbers = Vec::new();
                for (to, message) in sent {
                    for receiver in receivers(to, usize::from(from), count) {
                        numbers.push(self.number_of_message(receiver as u8, message.clone()));
                    }
                }
                Ok((self.number_of(next), numbers.into_boxed_slice()))
            }
        };
        self.steps.insert((node, action), step.clone());
        step
    }

    /// Everything that can happen next.
    fn expand(
        &mut self,
        state: &State,
        reached: &mut dyn FnMut(&mut Search, usize, Action, State),
    ) -> Result<(), (usize, Action, String)> {
        let bounds = self.bounds;
        for at in 0..usize::from(bounds.replicas) {
            let mut actions = Vec::new();
            let facts = &self.facts[state.nodes[at] as usize];
            if facts.writes {
                actions.push(Action::Flush);
            }
            if state.ops < bounds.ops && facts.can_propose {
                actions.push(Action::Propose(state.ops));
            }
            if state.suspicions < bounds.suspicions && facts.view < self.first_view + u64::from(bounds.views)
            {
                actions.push(Action::Suspect);
            }
            if state.ticks < bounds.ticks {
                actions.push(Action::Tick);
            }
            if state.crashes < bounds.crashes {
                actions.push(Action::Restart { rots: None });
                if state.rots < bounds.rots {
                    actions.extend(facts.tail.iter().map(|op| Action::Restart { rots: Some(*op) }));
                }
            }
            for (word, bits) in state.network.iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    let number = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    if usize::from(self.messages[number].0) == at {
                        actions.push(Action::Deliver(number as u16));
                    }
                }
            }
            for action in actions {
                let broken = |what| (at, action, what);
                let mut next = *state;
                match action {
                    Action::Propose(_) => next.ops += 1,
                    Action::Suspect => next.suspicions += 1,
                    Action::Tick => next.ticks += 1,
                    Action::Restart { rots } => {
                        next.crashes += 1;
                        next.rots += u8::from(rots.is_some());
                    }
                    Action::Deliver(_) | Action::Flush | Action::Meet { .. } => {}
                }
                self.apply(&mut next, at, action).map_err(broken)?;
                if let Action::Restart { .. } = action {
                    self.meet_again(&mut next, at).map_err(broken)?;
                }
                let last = self.first_view + u64::from(bounds.views);
                let is_beyond = |node: &u32| last < self.facts[*node as usize].view;
                if next == *state || next.nodes[..usize::from(bounds.replicas)].iter().any(is_beyond) {
                    continue;
                }
                reached(self, at, action, next);
            }
        }
        Ok(())
    }

    /// Changes one replica and the network, and checks what concerns more than one replica.
    fn apply(&mut self, state: &mut State, at: usize, action: Action) -> Result<(), String> {
        let (node, sent) = self.step(state.nodes[at], action)?;
        for number in sent {
            let (word, bit) = (usize::from(number) / 64, 1 << (number % 64));
            if state.network[word] & bit == 0 {
                self.check_start_view(&state.network, number)?;
                state.network[word] |= bit;
            }
        }
        if node != state.nodes[at] {
            let announced =
                self.facts[node as usize].announced != self.facts[state.nodes[at] as usize].announced;
            let left_before = self.facts[state.nodes[at] as usize].durable_view;
            state.nodes[at] = node;
            self.check_committed(state, at)?;
            if announced {
                self.check_kept(state)?;
            }
            if left_before < self.facts[node as usize].durable_view {
                self.forget_what_is_over(state, at)?;
            }
        }
        Ok(())
    }

    /// Drops the messages to a replica that are of views which it has left for good: states that differ in them alone are
    /// one. With a guard broken they may matter.
    fn forget_what_is_over(&mut self, state: &mut State, at: usize) -> Result<(), String> {
        if self.mutations != Mutations::NONE {
            return Ok(());
        }
        let node = state.nodes[at];
        let durable_view = self.facts[node as usize].durable_view;
        for number in 0..self.messages.len() {
            let (word, bit) = (number / 64, 1 << (number % 64));
            let (to, message) = &self.messages[number];
            let is_of_a_view = matches!(
                message.payload,
                Payload::Prepare { .. }
                    | Payload::PrepareOk { .. }
                    | Payload::Commit { .. }
                    | Payload::StartViewChange { .. }
                    | Payload::StartView { .. }
            );
            let is_over = usize::from(*to) == at && message.stamp.view.value() < durable_view;
            if is_over && is_of_a_view && state.network[word] & bit != 0 {
                let (then, sent) = self.step(node, Action::Deliver(number as u16))?;
                assert!(then == node && sent.is_empty(), "a message of a view that was left does nothing");
                state.network[word] &= !bit;
            }
        }
        Ok(())
    }

    /// A restarted replica and each of the others hear who the other is.
    fn meet_again(&mut self, state: &mut State, at: usize) -> Result<(), String> {
        for peer in (0..usize::from(self.bounds.replicas)).filter(|peer| *peer != at) {
            for (here, there) in [(at, peer), (peer, at)] {
                let incarnation = self.facts[state.nodes[there] as usize].incarnation;
                self.apply(state, here, Action::Meet { peer: there as u8, incarnation })?;
            }
        }
        Ok(())
    }

    /// I6.
    fn check_start_view(&self, network: &[u64], number: u16) -> Result<(), String> {
        let Some((_, stamp, log)) = self.start_views.iter().find(|(known, ..)| *known == number) else {
            return Ok(());
        };
        for (other, other_stamp, other_log) in &self.start_views {
            let sent = network[usize::from(*other) / 64] & 1 << (other % 64) != 0;
            if sent && other_stamp == stamp {
                for entry in log {
                    if other_log.iter().any(|other| other.op == entry.op && other != entry) {
                        return Err(format!("I6: view {} has two logs at op {}", stamp.view, entry.op));
                    }
                }
            }
        }
        Ok(())
    }

    /// I1, and that Qr disks hold what becomes committed.
    fn check_committed(&mut self, state: &mut State, at: usize) -> Result<(), String> {
        let known = &self.histories[state.history as usize];
        let mut more: Option<BTreeMap<Op, (Checksum, u64)>> = None;
        let view = self.facts[state.nodes[at] as usize].log_view;
        for entry in &self.facts[state.nodes[at] as usize].committed {
            match known.get(&entry.op) {
                Some((checksum, _)) if *checksum == entry.checksum => {}
                Some(_) => return Err(format!("I1: two entries are committed at op {}", entry.op)),
                None => {
                    let nodes = &state.nodes[..usize::from(self.bounds.replicas)];
                    let holds = |node: &&u32| self.facts[**node as usize].durable.contains(entry);
                    let disks = nodes.iter().filter(holds).count();
                    let needed = Quorums::of(usize::from(self.bounds.replicas)).replication;
                    if disks < needed {
                        return Err(format!("op {} is committed and {disks} disks hold it", entry.op));
                    }
                    more.get_or_insert_with(|| known.clone()).insert(entry.op, (entry.checksum, view));
                }
            }
        }
        if let Some(more) = more {
            let place = self.histories.iter().position(|history| *history == more);
            state.history = place.unwrap_or_else(|| {
                self.histories.push(more);
                self.histories.len() - 1
            }) as u32;
            self.check_kept(state)?;
        }
        Ok(())
    }

    /// I1, for ever: what was committed is in the log of every later view.
    fn check_kept(&self, state: &State) -> Result<(), String> {
        let history = &self.histories[state.history as usize];
        for node in &state.nodes[..usize::from(self.bounds.replicas)] {
            let Some((stamp, log)) = &self.facts[*node as usize].announced else { continue };
            let later = history.iter().filter(|(_, (_, view))| *view < stamp.view.value());
            for (op, (checksum, _)) in later {
                let entry = OpRef { op: *op, checksum: *checksum };
                let is_below = log.first().is_some_and(|commit_max| entry.op < commit_max.op);
                if !is_below && !log.contains(&entry) {
                    return Err(format!(
                        "I1: op {op} was committed, and view {} begins without it",
                        stamp.view
                    ));
                }
            }
        }
        Ok(())
    }

    // ---- telling --------------------------------------------------------------------------------------------

    fn way_to(&self, mut number: u32) -> Vec<(u8, Action)> {
        let mut way = Vec::new();
        while number != 0 {
            let (before, node, action) = self.ways[number as usize];
            way.push((node, action));
            number = before;
        }
        way.reverse();
        way
    }

    fn broken(&self, number: u32, node: usize, action: Action, what: String) -> Broken {
        let mut way = self.way_to(number);
        way.push((node as u8, action));
        let trace = way.iter().map(|(node, action)| self.told(*node, *action)).collect();
        Broken { what, trace }
    }

    fn told(&self, node: u8, action: Action) -> String {
        let what = match action {
            Action::Deliver(number) => {
                let (_, message) = &self.messages[usize::from(number)];
                format!(
                    "hears from replica {}, in view {}: {}",
                    message.from,
                    message.stamp.view,
                    said(message)
                )
            }
            Action::Flush => "flushes its oldest write".to_string(),
            Action::Suspect => "suspects its primary, or gives its primacy up".to_string(),
            Action::Propose(body) => format!("prepares entry {body}"),
            Action::Tick => "looks at its clock, 60 ms later".to_string(),
            Action::Restart { rots: None } => "crashes and starts again".to_string(),
            Action::Restart { rots: Some(op) } => format!("crashes and starts again; op {op} is damaged"),
            Action::Meet { peer, .. } => format!("meets replica {peer}"),
        };
        format!("replica {node} {what}")
    }
}

fn said(message: &Message) -> String {
    let head =
        |commit_max: &OpRef, suffix: &[EntryHeader]| suffix.last().map_or(commit_max.op, |header| header.op);
    match &message.payload {
        Payload::Prepare { entry, .. } => format!("Prepare op {}", entry.op()),
        Payload::PrepareOk { entry, .. } => format!("PrepareOk op {}", entry.op),
        Payload::Commit { commit_max, .. } => format!("Commit up to op {}", commit_max.op),
        Payload::StartViewChange { to } => format!("StartViewChange to {}", to.view),
        Payload::DoViewChange { log_stamp, commit_max, suffix, bits, .. } => format!(
            "DoViewChange, log of view {}, ops {}..={}, present {:b}, nack {:b}",
            log_stamp.stamp().view,
            commit_max.op,
            head(commit_max, suffix),
            bits.present,
            bits.nack
        ),
        Payload::StartView { commit_max, suffix, .. } => {
            format!("StartView, ops {}..={}", commit_max.op, head(commit_max, suffix))
        }
        other => format!("{:?}", other.command()),
    }
}

/// Whom a message reaches.
fn receivers(to: Recipients, from: usize, count: usize) -> Vec<usize> {
    match to {
        Recipients::One(one) => vec![usize::from(one.value())],
        Recipients::Voters | Recipients::All => (0..count).filter(|to| *to != from).collect(),
    }
}
