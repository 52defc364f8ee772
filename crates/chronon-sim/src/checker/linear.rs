//! Linearizability of registers, searched for from what clients saw alone: no op numbers, no log, no replica's word.
//!
//! The search of Wing and Gong, with Lowe's memory of configurations that led nowhere, one register at a time: a history
//! is linearizable if and only if each register's is. A call of unknown end may have taken effect at any time after it
//! began, or never.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chronon_vsr::Instant;

/// What was asked of a register, and what it answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It held this; none: it was never written.
    Read(Option<u64>),
    /// It was set.
    Write(u64),
    /// It was set to `new` if it held `expected`, and whether it did; none: nobody heard.
    Swap {
        /// What it should have held.
        expected: Option<u64>,
        /// What it was to hold.
        new: u64,
        /// Whether it held what was expected.
        swapped: Option<bool>,
    },
}

/// One call of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it was made.
    pub invoked: Instant,
    /// When its answer came. None: no answer ever came.
    pub returned: Option<Instant>,
    /// What it did.
    pub deed: Deed,
}

/// No order of these calls explains what was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotLinearizable {
    /// The longest explanation that was found, in its order.
    pub explained: Vec<Call>,
    /// The calls that could not come next.
    pub stuck: Vec<Call>,
}

impl fmt::Display for NotLinearizable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |call: &Call| {
            let end = call.returned.map_or_else(|| "…".to_owned(), |at| at.nanos().to_string());
            format!("{:?} [{}, {end}]", call.deed, call.invoked.nanos())
        };
        let last: Vec<String> = self.explained.iter().rev().take(4).rev().map(said).collect();
        let stuck: Vec<String> = self.stuck.iter().map(said).collect();
        write!(f, "after {} calls, the last of them {}, ", self.explained.len(), last.join(", "))?;
        write!(f, "none of these can be next: {}", stuck.join("; "))
    }
}

/// Whether some order of the calls respects real time and explains every answer.
pub fn check(calls: &[Call]) -> Result<(), NotLinearizable> {
    // A read that nobody heard changes and shows nothing.
    let heard = |call: &&Call| call.returned.is_some() || !matches!(call.deed, Deed::Read(_));
    let mut calls: Vec<Call> = calls.iter().filter(heard).copied().collect();
    calls.sort_by_key(|call| (call.invoked, call.returned.unwrap_or(Instant::NEVER)));
    Search::new(&calls).run()
}

/// What a register holds after a deed, if it can have happened then.
fn step(held: Option<u64>, call: &Call) -> Option<Option<u64>> {
    match call.deed {
        Deed::Read(seen) => (seen == held).then_some(held),
        Deed::Write(value) => Some(Some(value)),
        Deed::Swap { expected, new, swapped } => {
            let swaps = expected == held;
            let after = if swaps { Some(new) } else { held };
            swapped.is_none_or(|swapped| swapped == swaps).then_some(after)
        }
    }
}

/// A depth-first search over prefixes of the order.
struct Search<'a> {
    calls: &'a [Call],
    /// Which calls are in the order, a bit each.
    done: Vec<u64>,
    order: Vec<(usize, Option<u64>)>,
    held: Option<u64>,
    /// Sets of calls and what they left behind, from which the search came back.
    seen: BTreeSet<(Vec<u64>, Option<u64>)>,
    longest: Vec<usize>,
    stuck: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(calls: &'a [Call]) -> Search<'a> {
        Search {
            calls,
            done: vec![0; calls.len().div_ceil(64)],
            order: Vec::new(),
            held: None,
            seen: BTreeSet::new(),
            longest: Vec::new(),
            stuck: (0..calls.len()).collect(),
        }
    }

    fn is_done(&self, call: usize) -> bool {
        self.done[call / 64] >> (call % 64) & 1 == 1
    }

    fn flip(&mut self, call: usize) {
        self.done[call / 64] ^= 1 << (call % 64);
    }

    /// The calls that may come next: those that began before the first of the others ended.
    fn candidates(&self) -> Vec<usize> {
        let first_open = (0..self.calls.len()).find(|call| !self.is_done(*call)).unwrap_or(self.calls.len());
        let mut candidates = Vec::new();
        let mut end = Instant::NEVER;
        for call in first_open..self.calls.len() {
            if end < self.calls[call].invoked {
                break;
            }
            if !self.is_done(call) {
                end = end.min(self.calls[call].returned.unwrap_or(Instant::NEVER));
                candidates.push(call);
            }
        }
        candidates.retain(|call| self.calls[*call].invoked <= end);
        candidates
    }

    fn run(mut self) -> Result<(), NotLinearizable> {
        let answered = self.calls.iter().filter(|call| call.returned.is_some()).count();
        let mut heard = 0;
        let mut untried = vec![self.candidates()];
        loop {
            if heard == answered {
                return Ok(());
            }
            let next = untried.last_mut().expect("the root is left last").pop();
            let Some(call) = next else {
                untried.pop();
                let Some((last, before)) = self.order.pop() else {
                    let named = |calls: &[usize]| calls.iter().map(|call| self.calls[*call]).collect();
                    return Err(NotLinearizable {
                        explained: named(&self.longest),
                        stuck: named(&self.stuck),
                    });
                };
                self.flip(last);
                self.held = before;
                heard -= usize::from(self.calls[last].returned.is_some());
                continue;
            };
            let Some(after) = step(self.held, &self.calls[call]) else { continue };
            self.flip(call);
            if !self.seen.insert((self.done.clone(), after)) {
                self.flip(call);
                continue;
            }
            self.order.push((call, self.held));
            self.held = after;
            heard += usize::from(self.calls[call].returned.is_some());
            let candidates = self.candidates();
            if self.longest.len() < self.order.len() {
                self.longest = self.order.iter().map(|(call, _)| *call).collect();
                self.stuck = candidates.clone();
            }
            untried.push(candidates);
        }
    }
}

/// The same for many registers at once: the first that is not linearizable is named.
pub fn check_all<K: Ord + Copy>(
    calls: impl IntoIterator<Item = (K, Call)>,
) -> Result<(), (K, NotLinearizable)> {
    let mut registers: BTreeMap<K, Vec<Call>> = BTreeMap::new();
    for (register, call) in calls {
        registers.entry(register).or_default().push(call);
    }
    registers.into_iter().try_for_each(|(register, calls)| check(&calls).map_err(|why| (register, why)))
}

#[cfg(test)]
mod tests {
    use chronon_vsr::Prng;

    use super::*;

    fn call(invoked: u64, returned: u64, deed: Deed) -> Call {
        Call { invoked: Instant::from_nanos(invoked), returned: Some(Instant::from_nanos(returned)), deed }
    }

    fn lost(invoked: u64, deed: Deed) -> Call {
        Call { invoked: Instant::from_nanos(invoked), returned: None, deed }
    }

    fn swap(expected: Option<u64>, new: u64, swapped: bool) -> Deed {
        Deed::Swap { expected, new, swapped: Some(swapped) }
    }

    use Deed::{Read, Write};

    #[test]
    fn good_histories_are_explained() {
        let good: [&[Call]; 9] = [
            &[],
            &[call(0, 1, Read(None)), call(2, 3, Write(1)), call(4, 5, Read(Some(1)))],
            // Two at once: either order.
            &[call(0, 10, Write(1)), call(5, 15, Write(2)), call(20, 21, Read(Some(1)))],
            &[call(0, 10, Write(1)), call(5, 15, Write(2)), call(20, 21, Read(Some(2)))],
            // A read beside a write sees the old or the new.
            &[call(0, 100, Write(1)), call(10, 20, Read(None)), call(30, 40, Read(Some(1)))],
            // Nobody heard of the write: it may be seen late, or never.
            &[lost(0, Write(7)), call(10, 11, Read(None)), call(20, 21, Read(Some(7)))],
            &[lost(0, Write(7)), call(10, 11, Write(1)), call(20, 21, Read(Some(1)))],
            &[
                call(0, 1, swap(None, 1, true)),
                call(2, 3, swap(None, 2, false)),
                call(4, 5, swap(Some(1), 3, true)),
            ],
            // What was heard at one instant may have been in either order.
            &[call(0, 5, Write(1)), call(5, 9, Read(None)), call(10, 11, Read(Some(1)))],
        ];
        for calls in good {
            assert_eq!(check(calls), Ok(()), "{calls:?}");
        }
    }

    #[test]
    fn bad_histories_are_not() {
        let bad: [&[Call]; 8] = [
            &[call(0, 1, Write(1)), call(2, 3, Read(None))],
            &[call(0, 1, Write(1)), call(2, 3, Write(2)), call(4, 5, Read(Some(1)))],
            // New, then old again.
            &[call(0, 100, Write(1)), call(10, 20, Read(Some(1))), call(30, 40, Read(None))],
            // Out of thin air.
            &[call(0, 1, Write(1)), call(2, 3, Read(Some(9)))],
            // Before it was asked for.
            &[call(0, 1, Read(Some(7))), lost(5, Write(7))],
            // Both won.
            &[call(0, 10, swap(None, 1, true)), call(0, 10, swap(None, 2, true))],
            &[call(0, 1, Write(1)), call(2, 3, swap(Some(1), 2, false))],
            // Two who read in two orders.
            &[
                call(0, 100, Write(1)),
                call(0, 100, Write(2)),
                call(110, 111, Read(Some(1))),
                call(112, 113, Read(Some(2))),
            ],
        ];
        for calls in bad {
            assert!(check(calls).is_err(), "{calls:?}");
        }
    }

    /// Calls at a register that exists: each takes effect at an instant between its begin and its end.
    fn history(seed: u64, calls: u64) -> Vec<Call> {
        let mut prng = Prng::new(seed);
        let mut moments: Vec<(u64, u64, u64)> = (0..calls)
            .map(|_| {
                let at = prng.between(100, 100 * calls);
                (at, at - prng.below(90), at + prng.below(900))
            })
            .collect();
        moments.sort_unstable();
        let mut held = None;
        let mut history = Vec::new();
        for (_, invoked, returned) in moments {
            let value = prng.below(5);
            let deed = match prng.below(3) {
                0 => Read(held),
                1 => Write(value),
                _ => {
                    let expected = if prng.chance(1, 2) { held } else { Some(value) };
                    Deed::Swap { expected, new: prng.below(5), swapped: Some(expected == held) }
                }
            };
            let call = call(invoked, returned, deed);
            held = step(held, &call).expect("it was made from what is held");
            let is_lost = prng.chance(1, 10);
            history.push(if is_lost { Call { returned: None, ..call } } else { call });
        }
        history
    }

    #[test]
    fn whatever_a_real_register_answered_is_explained() {
        for seed in 0..200 {
            let calls = history(seed, 20 + seed % 100);
            assert_eq!(check(&calls), Ok(()), "seed {seed}");
        }
    }

    /// Every order of the calls, tried one by one.
    fn brute_force(calls: &[Call], held: Option<u64>) -> bool {
        if calls.iter().all(|call| call.returned.is_none()) {
            return true;
        }
        let end = calls.iter().filter_map(|call| call.returned).min().unwrap_or(Instant::NEVER);
        (0..calls.len()).any(|at| {
            let mut rest = calls.to_vec();
            let call = rest.remove(at);
            call.invoked <= end && step(held, &call).is_some_and(|held| brute_force(&rest, held))
        })
    }

    #[test]
    fn the_search_agrees_with_trying_every_order() {
        let (mut good, mut bad) = (0, 0);
        for seed in 0..3_000 {
            let mut calls = history(seed, 7);
            // One answer is made up.
            let mut prng = Prng::new(seed ^ 0xabcd);
            let at = prng.below(7) as usize;
            calls[at].deed = match calls[at].deed {
                Read(_) => Read(Some(prng.below(5))),
                Write(_) => Read(None),
                Deed::Swap { expected, new, swapped } => {
                    Deed::Swap { expected, new, swapped: swapped.map(|swapped| !swapped) }
                }
            };
            let expected = brute_force(&calls, None);
            assert_eq!(check(&calls).is_ok(), expected, "seed {seed}: {calls:?}");
            if expected { good += 1 } else { bad += 1 }
        }
        assert!(100 < good && 100 < bad, "{good} good, {bad} bad");
    }
}
