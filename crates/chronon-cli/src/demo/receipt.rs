//! The receipt: the clients' books against the receiver's ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::clients::Books;
use super::receiver::Record;
use super::workload::EffectCounts;

/// Problems that are shown; all are in the clients' ledger.
const PROBLEMS_SHOWN: usize = 5;

/// A primary was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    pub(crate) at: Instant,
    /// When somebody else, or itself after a restart, is known to have served.
    pub(crate) served: Instant,
}

/// Everything that a receipt is drawn from.
#[derive(Debug)]
pub(crate) struct Evidence {
    pub(crate) seed: u64,
    pub(crate) replicas: u8,
    pub(crate) kills_wanted: u32,
    pub(crate) kills: Vec<Kill>,
    pub(crate) books: Books,
    pub(crate) records: Vec<Record>,
    /// Transfers that the machine says it applied.
    pub(crate) applied: u64,
    pub(crate) counts: EffectCounts,
    /// All the money, before and after.
    pub(crate) money: (u64, u64),
    pub(crate) loaded: Duration,
    /// The time without kills, and what was acknowledged in it.
    pub(crate) flat_out: (Duration, u64),
    pub(crate) took: Duration,
}

/// The receipt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Receipt {
    all_right: bool,
    seed: u64,
    replicas: u8,
    commands: Commands,
    money: Money,
    effects: Effects,
    kills: Kills,
    commands_per_second: PerSecond,
    seconds: f64,
    /// What is not all right, in words.
    findings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Commands {
    submitted: u64,
    acknowledged: u64,
    applied: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Money {
    before: u64,
    after: u64,
    conserved: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Effects {
    emitted: u64,
    delivered: u64,
    /// Acknowledged transfers that the receiver never saw.
    lost: u64,
    /// Transfers that came under two keys.
    doubled: u64,
    /// Transfers that nobody submitted.
    invented: u64,
    /// Keys that came with two bodies.
    changed: u64,
    /// Attempts beyond the first under the same key: what the contract allows, and the receiver recognised.
    repeated_attempts: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Kills {
    wanted: u32,
    done: u32,
    failover_ms: Vec<u64>,
    failover_median_ms: Option<u64>,
    failover_worst_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct PerSecond {
    /// With kills, the load spread over them.
    overall: f64,
    /// After the kills, at full speed.
    at_full_speed: f64,
}

impl Receipt {
    /// Compares the books.
    pub(crate) fn draw(evidence: Evidence) -> Receipt {
        let Evidence { books, records, kills, counts, money, .. } = &evidence;
        let effects = compare(books, records, counts);
        let failover_ms = failovers(kills, &books.successes);
        let mut sorted = failover_ms.clone();
        sorted.sort_unstable();
        let commands = Commands {
            submitted: books.submitted.len() as u64,
            acknowledged: books.acknowledged.len() as u64,
            applied: evidence.applied,
        };
        let mut findings = Vec::new();
        let mut expect = |right: bool, finding: String| {
            if !right {
                findings.push(finding);
            }
        };
        let Commands { submitted, acknowledged, applied } = commands;
        expect(
            acknowledged == submitted,
            format!("{} transfers were never acknowledged", submitted - acknowledged),
        );
        expect(
            applied == acknowledged,
            format!("{acknowledged} transfers were acknowledged, {applied} applied"),
        );
        expect(money.0 == money.1, format!("there was {} of money, now there is {}", money.0, money.1));
        expect(
            effects.emitted == applied,
            format!("{applied} transfers emitted {} effects", effects.emitted),
        );
        expect(
            effects.delivered == effects.emitted,
            format!("{} effects are not delivered", effects.emitted.saturating_sub(effects.delivered)),
        );
        expect(
            effects.lost == 0,
            format!("{} acknowledged transfers never reached the receiver", effects.lost),
        );
        expect(
            effects.doubled == 0,
            format!("{} transfers reached the receiver under two keys", effects.doubled),
        );
        expect(
            effects.invented == 0,
            format!("{} transfers reached the receiver that nobody submitted", effects.invented),
        );
        expect(effects.changed == 0, format!("{} keys came with two bodies", effects.changed));
        let done = kills.len() as u32;
        expect(done == evidence.kills_wanted, format!("only {done} of {} kills", evidence.kills_wanted));
        let problems = &books.problems;
        expect(problems.is_empty(), format!("{} transfers had a problem", problems.len()));
        findings.extend(problems.iter().take(PROBLEMS_SHOWN).cloned());
        let rate = |count: u64, time: Duration| {
            if time.is_zero() { 0.0 } else { (count as f64 / time.as_secs_f64()).round() }
        };
        Receipt {
            all_right: findings.is_empty(),
            seed: evidence.seed,
            replicas: evidence.replicas,
            commands,
            money: Money { before: money.0, after: money.1, conserved: money.0 == money.1 },
            effects,
            kills: Kills {
                wanted: evidence.kills_wanted,
                done,
                failover_median_ms: sorted.get(sorted.len() / 2).copied(),
                failover_worst_ms: sorted.last().copied(),
                failover_ms,
            },
            commands_per_second: PerSecond {
                overall: rate(acknowledged, evidence.loaded),
                at_full_speed: rate(evidence.flat_out.1, evidence.flat_out.0),
            },
            seconds: (evidence.took.as_secs_f64() * 10.0).round() / 10.0,
            findings,
        }
    }

    pub(crate) fn all_right(&self) -> bool {
        self.all_right
    }

    /// Prints it for people or for programs.
    pub(crate) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        let Receipt { commands, money, effects, kills, commands_per_second, .. } = self;
        let or_dash = |millis: Option<u64>| millis.map_or("-".to_owned(), |millis| format!("{millis} ms"));
        let conserved = if money.conserved { "conserved" } else { "NOT conserved" };
        println!();
        println!("  commands   {:>7} acknowledged   {:>7} applied", commands.acknowledged, commands.applied);
        println!(
            "  money      {:>7} before         {:>7} after       {conserved}",
            money.before, money.after
        );
        println!("  effects    {:>7} emitted        {:>7} delivered", effects.emitted, effects.delivered);
        println!("             {:>7} lost           {:>7} doubled", effects.lost, effects.doubled);
        println!("             {:>7} invented       {:>7} changed", effects.invented, effects.changed);
        println!(
            "             {:>7} repeated attempts, each recognised by its key",
            effects.repeated_attempts
        );
        println!(
            "  fail-over  {:>7} kills          {:>7} median      {} worst, as a client sees it",
            kills.done,
            or_dash(kills.failover_median_ms),
            or_dash(kills.failover_worst_ms)
        );
        println!(
            "  speed      {:>7} commands/s with kills and pauses, {} commands/s at full speed after them",
            commands_per_second.overall, commands_per_second.at_full_speed
        );
        println!("  took       {:>7} s, {} replicas, seed {}", self.seconds, self.replicas, self.seed);
        println!();
        for finding in &self.findings {
            println!("  WRONG: {finding}");
        }
        if self.all_right {
            println!("  All right: nothing lost, nothing doubled, nothing invented, nothing changed.");
        }
        Ok(())
    }
}

fn compare(books: &Books, records: &[Record], counts: &EffectCounts) -> Effects {
    let mut keys_of: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    let mut bodies_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Record { transfer, key, body } in records {
        keys_of.entry(*transfer).or_default().insert(key);
        bodies_of.entry(key).or_default().insert(body);
    }
    let count = |count: usize| count as u64;
    Effects {
        emitted: counts.emitted,
        delivered: counts.delivered,
        lost: count(books.acknowledged.iter().filter(|id| !keys_of.contains_key(id)).count()),
        doubled: count(keys_of.values().filter(|keys| 1 < keys.len()).count()),
        invented: count(keys_of.keys().filter(|id| !books.submitted.contains(id)).count()),
        changed: count(bodies_of.values().filter(|bodies| 1 < bodies.len()).count()),
        repeated_attempts: count(records.len() - bodies_of.len()),
    }
}

/// For each kill the longest silence that ended after it, until service was back: first success after it minus last
/// success before it. Answers that were on their way when the primary died do not shorten it.
pub(crate) fn failovers(kills: &[Kill], successes: &[Instant]) -> Vec<u64> {
    let mut sorted = successes.to_vec();
    sorted.sort_unstable();
    kills
        .iter()
        .filter_map(|Kill { at, served }| {
            let silences = sorted.windows(2).filter(|pair| *at < pair[1] && pair[1] <= *served);
            silences.map(|pair| pair[1] - pair[0]).max()
        })
        .map(|silence| u64::try_from(silence.as_millis()).unwrap_or(u64::MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(transfer: u64, key: &str, body: &str) -> Record {
        Record { transfer, key: key.into(), body: body.into() }
    }

    /// Two transfers, each delivered once.
    fn evidence() -> Evidence {
        let ids: BTreeSet<u64> = [1, 2].into();
        Evidence {
            seed: 1,
            replicas: 3,
            kills_wanted: 0,
            kills: Vec::new(),
            books: Books { submitted: ids.clone(), acknowledged: ids, ..Books::default() },
            records: vec![record(1, "1", "x"), record(2, "2", "y")],
            applied: 2,
            counts: EffectCounts { emitted: 2, delivered: 2, undelivered: 0 },
            money: (100, 100),
            loaded: Duration::from_secs(1),
            flat_out: (Duration::from_secs(1), 2),
            took: Duration::from_secs(2),
        }
    }

    #[test]
    fn books_that_agree_are_all_right_and_a_repeat_under_the_same_key_too() {
        let mut evidence = evidence();
        evidence.records.push(record(1, "1", "x"));
        let receipt = Receipt::draw(evidence);
        assert!(receipt.all_right(), "{receipt:?}");
        assert_eq!(receipt.effects.repeated_attempts, 1);
    }

    #[test]
    fn each_kind_of_disagreement_is_found() {
        let broken = |break_it: &dyn Fn(&mut Evidence)| {
            let mut evidence = evidence();
            break_it(&mut evidence);
            let receipt = Receipt::draw(evidence);
            assert!(!receipt.all_right(), "{receipt:?}");
            receipt.effects
        };
        assert_eq!(broken(&|e| drop(e.records.pop())).lost, 1);
        assert_eq!(broken(&|e| e.records.push(record(1, "3", "x"))).doubled, 1);
        assert_eq!(broken(&|e| e.records.push(record(3, "3", "x"))).invented, 1);
        assert_eq!(broken(&|e| e.records.push(record(1, "1", "z"))).changed, 1);
        broken(&|e| e.money.1 = 99);
        broken(&|e| e.applied = 1);
        broken(&|e| e.applied = 3);
        broken(&|e| e.counts.delivered = 1);
        broken(&|e| e.kills_wanted = 1);
        broken(&|e| e.books.problems.push("a: aborted".into()));
        broken(&|e| e.books.acknowledged.retain(|id| *id != 1));
    }

    #[test]
    fn a_failover_is_the_longest_silence_around_a_kill_until_service_is_back() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let successes = [at(0), at(90), at(101), at(400), at(410), at(900), at(905)];
        let kill = |ms, served| Kill { at: at(ms), served: at(served) };
        assert_eq!(failovers(&[kill(100, 400), kill(500, 905)], &successes), [299, 490]);
        // A client that is silent by itself, later, is no fail-over.
        assert_eq!(failovers(&[kill(95, 101)], &successes), [11]);
    }
}
