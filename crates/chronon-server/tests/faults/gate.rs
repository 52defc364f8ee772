//! A primary that was cut off and does not know it: what of its calls still leaves, and what of their ends still counts
//! (scenarios 42 and 73).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Serve, Setup};
use crate::common::{eventually, within};
use crate::links::Mode;
use crate::machine::Command;
use chronon_kernel::{EffectId, EffectKey, Fence};
use chronon_node::Gate;
use chronon_server::{Call, CallError};
#[cfg(feature = "mutations")]
use chronon_vsr::Mutation;
use chronon_vsr::Mutations;
use tokio::sync::watch;

/// Who calls: the primary of the first call, or a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    Old,
    New,
}

/// A call that reached the sink's door.
#[derive(Clone, Debug)]
struct Seen {
    replica: u8,
    caller: Caller,
    effect: u64,
    key: EffectKey,
    fence: Fence,
}

/// What the sink answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Done,
    Refused,
    /// As a sink that remembers keys and refuses older fences finds.
    Judged,
}

/// A sink whose calls wait until the test says how each ends.
struct Receiver {
    first: OnceLock<Fence>,
    seen: Mutex<Vec<Seen>>,
    replies: watch::Sender<BTreeMap<(Caller, u64), Reply>>,
    memory: Mutex<Memory>,
}

/// What a sink that dedups and fences remembers.
#[derive(Default)]
struct Memory {
    fence: Option<Fence>,
    acted: BTreeMap<EffectKey, String>,
    acts: u32,
    fenced_off: u32,
    repeats: u32,
}

impl Receiver {
    fn new() -> Arc<Receiver> {
        Arc::new(Receiver {
            first: OnceLock::new(),
            seen: Mutex::default(),
            replies: watch::Sender::default(),
            memory: Mutex::default(),
        })
    }

    fn serve(self: &Arc<Receiver>) -> Serve {
        let receiver = Arc::clone(self);
        Arc::new(move |replica, call| {
            let receiver = Arc::clone(&receiver);
            Box::pin(async move { receiver.call(replica, call).await })
        })
    }

    async fn call(&self, replica: u8, call: Call<u64>) -> Result<String, CallError> {
        let caller =
            if call.fence == *self.first.get_or_init(|| call.fence) { Caller::Old } else { Caller::New };
        let place = (caller, call.effect);
        let seen = Seen { replica, caller, effect: call.effect, key: call.key.clone(), fence: call.fence };
        self.seen.lock().unwrap().push(seen);
        let mut replies = self.replies.subscribe();
        let replies = replies.wait_for(|replies| replies.contains_key(&place)).await.unwrap();
        match replies[&place] {
            Reply::Done => Ok(format!("{caller:?}")),
            Reply::Refused => Err(CallError::Refused(format!("{caller:?}"))),
            Reply::Judged => self.memory.lock().unwrap().judge(caller, &call),
        }
    }

    /// Ends a call, or says how it will end.
    fn reply(&self, caller: Caller, effect: u64, reply: Reply) {
        self.replies.send_modify(|replies| {
            replies.insert((caller, effect), reply);
        });
    }

    fn seen(&self, caller: Caller) -> BTreeSet<u64> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.caller == caller).map(|seen| seen.effect).collect()
    }

    /// Which replicas called, and whether under the first fence.
    fn callers(&self) -> BTreeSet<(u8, Caller)> {
        self.seen.lock().unwrap().iter().map(|seen| (seen.replica, seen.caller)).collect()
    }

    /// Every effect came under one key, and its own; the later primary's fence is the higher one.
    fn assert_keys_and_fences(&self) {
        let seen = self.seen.lock().unwrap();
        let keys: BTreeSet<_> = seen.iter().map(|seen| (seen.effect, &seen.key)).collect();
        let effects: BTreeSet<u64> = seen.iter().map(|seen| seen.effect).collect();
        assert_eq!(keys.len(), effects.len(), "one key an effect: {keys:?}");
        let fences = |caller| seen.iter().filter(move |seen| seen.caller == caller).map(|seen| seen.fence);
        assert!(fences(Caller::Old).max() < fences(Caller::New).min());
    }
}

impl Memory {
    fn judge(&mut self, caller: Caller, call: &Call<u64>) -> Result<String, CallError> {
        if Some(call.fence) < self.fence {
            self.fenced_off += 1;
            return Err(CallError::Refused("an older fence".to_owned()));
        }
        self.fence = Some(call.fence);
        if let Some(answer) = self.acted.get(&call.key) {
            self.repeats += 1;
            return Ok(answer.clone());
        }
        self.acts += 1;
        let answer = format!("{caller:?}");
        self.acted.insert(call.key.clone(), answer.clone());
        Ok(answer)
    }
}

async fn send(cluster: &Cluster, primary: u8, effect: u64) -> EffectId {
    let client = cluster.client(primary);
    within("submit", client.submit(&Command::Send(effect))).await.unwrap().effects[0]
}

async fn heard(cluster: &Cluster, at: u8) -> BTreeMap<u64, Vec<String>> {
    let books = within("query", cluster.client(at).query(&())).await.unwrap().answer;
    books.assert_sound();
    books.heard.into_iter().collect()
}

fn delivered(by: Caller) -> Vec<String> {
    vec![format!("Delivered(\"{by:?}\")")]
}

/// Waits until an effect's record holds so many such ends, and asserts that the last of them decided nothing.
async fn evidence(cluster: &Cluster, at: u8, effect: EffectId, ended: &str, count: usize) {
    let path = format!("/v1/effects/{effect}");
    let ends = async || {
        let shown = cluster.get(at, &path).await;
        let attempts = shown["attempts"].as_array().unwrap().iter();
        let ends = attempts.filter(|attempt| attempt["ended"] == ended);
        ends.map(|attempt| attempt["decisive"] == true).collect::<Vec<bool>>()
    };
    eventually(&format!("{effect} holds the end"), async || count <= ends().await.len()).await;
    assert_eq!(ends().await.last(), Some(&false), "a late end of {effect} decided something");
}

/// A primary that is cut off from all others while its calls of effects 1 and 2 are under way.
struct CutOff {
    receiver: Arc<Receiver>,
    cluster: Cluster,
    old: u8,
    view: u64,
    first: EffectId,
    second: EffectId,
    cut: Instant,
}

/// How often a story begins anew because the view changed before the cut.
const BEGINNINGS_MAX: u32 = 10;

impl CutOff {
    /// The story needs one reign before the cut, and on a busy machine the view may change by itself: whoever led first
    /// is then no primary any more when it is cut off. So it begins anew until a reign lasts that long.
    async fn begin(attempts_max: usize, mutations: Mutations, behind: &[u64]) -> CutOff {
        for _ in 0..BEGINNINGS_MAX {
            if let Some(begun) = CutOff::try_to_begin(attempts_max, mutations, behind).await {
                return begun;
            }
        }
        panic!("the view changed before the cut, {BEGINNINGS_MAX} times in a row");
    }

    async fn try_to_begin(attempts_max: usize, mutations: Mutations, behind: &[u64]) -> Option<CutOff> {
        let receiver = Receiver::new();
        let setup = Setup { attempts_max, serve: receiver.serve(), mutations, ..Setup::new(3) };
        let cluster = Cluster::start(setup).await;
        let (old, view) = cluster.primary_after(None).await;
        let first = send(&cluster, old, 1).await;
        let second = send(&cluster, old, 2).await;
        let both = BTreeSet::from([1, 2]);
        let called = async || {
            let seen = &receiver.seen(Caller::Old) | &receiver.seen(Caller::New);
            seen.is_superset(&both)
        };
        eventually("the first two are called", called).await;
        for effect in behind {
            send(&cluster, old, *effect).await;
        }
        cluster.links.set_all_of(old, Mode::Lose);
        let cut = Instant::now();
        // From now on it hears of no later view, so this is what it was at the cut.
        let status = cluster.status(old).await;
        let one_reign = receiver.callers() == BTreeSet::from([(old, Caller::Old)]);
        let leads = status.role == "primary" && status.view == view;
        (one_reign && leads).then_some(CutOff { receiver, cluster, old, view, first, second, cut })
    }
}

/// A primary is cut off with two calls under way and two more ordered; what it then does, and what becomes of it.
async fn cut_the_primary_off(mutations: Mutations) {
    // Two calls fill the primary: what was ordered behind them has yet to pass the gate.
    let begun = CutOff::begin(2, mutations, &[3, 4]).await;
    let CutOff { receiver, cluster, old, view, first, second, cut } = begun;
    receiver.reply(Caller::New, 3, Reply::Done);
    receiver.reply(Caller::New, 4, Reply::Done);
    let (new, _) = cluster.primary_after(Some(view)).await;
    // It takes them in any order; the others end at once and make way.
    let called = async || receiver.seen(Caller::New).is_superset(&BTreeSet::from([1, 2]));
    eventually("the new primary calls them too", called).await;
    let closed = Gate::AGE_MAX + Duration::from_millis(100);
    eventually("the gate's age", async || closed <= cut.elapsed()).await;
    receiver.reply(Caller::Old, 1, Reply::Done);
    receiver.reply(Caller::Old, 2, Reply::Refused);
    let abandoned = async || 2 <= cluster.counter(old, "attempts_abandoned").await;
    eventually("the next two come to the gate", abandoned).await;
    assert_eq!(receiver.seen(Caller::Old), BTreeSet::from([1, 2]), "and don't pass");

    // The late ends arrive while the new primary's calls of the same effects are still under way.
    cluster.links.set_all_of(old, Mode::Pass);
    let settled = async || heard(&cluster, new).await.get(&1) == Some(&delivered(Caller::Old));
    eventually("the late success settles what is open", settled).await;
    evidence(&cluster, new, second, "permanent", 1).await;
    assert!(!heard(&cluster, new).await.contains_key(&2), "and changes nothing");

    receiver.reply(Caller::New, 1, Reply::Done);
    receiver.reply(Caller::New, 2, Reply::Done);
    let settled = async || heard(&cluster, new).await.len() == 4;
    eventually("everything is settled", settled).await;
    evidence(&cluster, new, first, "delivered", 2).await;
    let heard: BTreeMap<_, _> = cluster.books().await.heard.into_iter().collect();
    assert_eq!(heard[&1], delivered(Caller::Old));
    for effect in 2..=4 {
        assert_eq!(heard[&effect], delivered(Caller::New));
    }
    assert_eq!(receiver.seen(Caller::Old), BTreeSet::from([1, 2]));
    assert_eq!(receiver.seen(Caller::New), BTreeSet::from([1, 2, 3, 4]));
    receiver.assert_keys_and_fences();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_cut_off_starts_nothing_and_its_late_ends_count_only_if_they_are_good() {
    cut_the_primary_off(Mutations::NONE).await;
}

#[cfg(feature = "mutations")]
#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "decided something")]
async fn a_late_failure_that_counts_is_caught() {
    cut_the_primary_off(Mutations::broken(Mutation::NegativeOutcomeFromOldStamp)).await;
}

#[cfg(feature = "mutations")]
#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "more than one outcome")]
async fn an_effect_that_settles_twice_is_caught() {
    cut_the_primary_off(Mutations::broken(Mutation::SettleTwice)).await;
}

#[cfg(feature = "mutations")]
#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "one key an effect")]
async fn a_new_key_for_each_attempt_is_caught() {
    cut_the_primary_off(Mutations::broken(Mutation::NewKeyPerAttempt)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_primaries_that_call_one_sink_act_once_under_one_key_and_settle_once() {
    // The first call is late on its way; the second acts, and its answer is late.
    let begun = CutOff::begin(1_024, Mutations::NONE, &[]).await;
    let CutOff { receiver, cluster, old, view, first, second, .. } = begun;
    {
        let seen = receiver.seen.lock().unwrap().clone();
        let seen = seen.into_iter().find(|seen| seen.effect == 2).unwrap();
        let mut memory = receiver.memory.lock().unwrap();
        memory.fence = Some(seen.fence);
        memory.acted.insert(seen.key, "Old".to_owned());
        memory.acts += 1;
    }
    receiver.reply(Caller::New, 1, Reply::Judged);
    receiver.reply(Caller::New, 2, Reply::Judged);
    let (new, _) = cluster.primary_after(Some(view)).await;
    let settled = async || heard(&cluster, new).await.len() == 2;
    eventually("the new primary settles both", settled).await;

    receiver.reply(Caller::Old, 1, Reply::Judged);
    receiver.reply(Caller::Old, 2, Reply::Done);
    cluster.links.set_all_of(old, Mode::Pass);
    evidence(&cluster, new, first, "permanent", 1).await;
    evidence(&cluster, new, second, "delivered", 2).await;

    let books = cluster.books().await;
    let heard: BTreeMap<_, _> = books.heard.into_iter().collect();
    assert_eq!(heard, BTreeMap::from([(1, delivered(Caller::New)), (2, delivered(Caller::Old))]));
    receiver.assert_keys_and_fences();
    let memory = receiver.memory.lock().unwrap();
    assert_eq!((memory.acts, memory.fenced_off, memory.repeats), (2, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_faults_each_effect_is_called_once() {
    let receiver = Receiver::new();
    let cluster = Cluster::start(Setup { serve: receiver.serve(), ..Setup::new(3) }).await;
    let primary = cluster.primary().await;
    for effect in 1..=40 {
        receiver.reply(Caller::Old, effect, Reply::Done);
        // From every replica: two thirds of them are forwarded.
        send(&cluster, (effect % 3) as u8, effect).await;
    }
    let settled = async || heard(&cluster, primary).await.len() == 40;
    eventually("everything is settled", settled).await;
    assert_eq!(receiver.seen.lock().unwrap().len(), 40);
    assert_eq!(cluster.count("attempts_started").await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_stops_what_waits_for_its_turn_and_holds_after_a_fail_over() {
    let receiver = Receiver::new();
    // One call fills a replica: what was ordered behind it has left the dispatcher and waits.
    let setup = Setup { attempts_max: 1, serve: receiver.serve(), ..Setup::new(3) };
    let cluster = Cluster::start(setup).await;
    let (old, view) = cluster.primary_after(None).await;
    send(&cluster, old, 1).await;
    send(&cluster, old, 2).await;
    let everything = || &receiver.seen(Caller::Old) | &receiver.seen(Caller::New);
    eventually("one is called", async || everything().len() == 1).await;
    let called = everything().first().copied().unwrap();
    let waiting = 3 - called;

    cluster.post(old, "/v1/sinks/out/freeze").await;
    receiver.reply(Caller::Old, called, Reply::Done);
    receiver.reply(Caller::New, called, Reply::Done);
    // The way is free, and the freeze is acknowledged.
    let abandoned = async || 1 <= cluster.count("attempts_abandoned").await;
    eventually("the other comes to the gate", abandoned).await;
    let settled = async || heard(&cluster, old).await.contains_key(&called);
    eventually("what was under way ends and is recorded", settled).await;
    assert_eq!(everything(), BTreeSet::from([called]), "and the other does not pass");

    cluster.links.set_all_of(old, Mode::Lose);
    let (new, _) = cluster.primary_after(Some(view)).await;
    // sleeps: nothing may happen in this time; a start needs a few milliseconds.
    tokio::time::sleep(2 * Gate::AGE_MAX).await;
    assert_eq!(everything(), BTreeSet::from([called]), "nor at the new primary");

    receiver.reply(Caller::Old, waiting, Reply::Done);
    receiver.reply(Caller::New, waiting, Reply::Done);
    cluster.post(new, "/v1/sinks/out/thaw").await;
    let settled = async || heard(&cluster, new).await.len() == 2;
    eventually("what was held back is called once the sink is thawed", settled).await;
    assert_eq!(everything(), BTreeSet::from([1, 2]));
}
