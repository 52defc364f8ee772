//! What time a quorum agrees that it is (§5.2), so that one bad clock neither blocks nor poisons log time.
//!
//! Each Pong bounds the answerer's wall clock: it was read between the Ping and the Pong. Carried forward by our
//! monotonic clock, that bound still holds later, whatever our own wall clock does. Marzullo's algorithm then finds
//! the interval that lies within most clocks' bounds.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::{Duration, Instant, Now, ReplicaId, Timestamp, VOTERS_MAX};

/// A sample older than this says nothing any more: clocks drift and get set.
const WINDOW: Duration = Duration::from_secs(20);

/// After this a good sample makes way for a worse but newer one, so that there is always one inside the window.
const FRESH: Duration = Duration::from_secs(10);

/// How far a clock that counts as right may be from true time: two such clocks differ by at most a second (§13.9).
const TOLERANCE: Duration = Duration::from_millis(500);

/// What is known of the wall clocks of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// A quorum agrees what time it is, and this replica's own clock with it.
    Agree,
    /// A quorum agrees, and this replica's own clock is more than a second from that.
    OwnIsOff,
    /// No quorum agrees.
    Disagree,
}

/// The clocks of other voters, as their Pongs showed them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    /// The best sample of each peer: at most one for each other voter.
    samples: BTreeMap<ReplicaId, Sample>,
}

/// The peer's wall clock said `wall` at some instant in `earliest..=latest` of our monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    wall: Timestamp,
    earliest: Instant,
    latest: Instant,
}

impl Sample {
    fn round_trip(&self) -> Duration {
        self.latest.since(self.earliest)
    }

    fn age(&self, now: Instant) -> Duration {
        now.since(self.latest)
    }

    /// Between what and what the peer's clock stands now.
    fn bounds(&self, now: Instant) -> (Timestamp, Timestamp) {
        (self.wall + now.since(self.latest), self.wall + now.since(self.earliest))
    }

    /// Whether one steadily running clock may have given both samples.
    fn agrees_with(&self, other: &Sample, now: Instant) -> bool {
        let ((a_low, a_high), (b_low, b_high)) = (self.bounds(now), other.bounds(now));
        a_low <= b_high + TOLERANCE && b_low <= a_high + TOLERANCE
    }
}

impl Clock {
    /// No samples yet.
    pub(crate) fn new() -> Clock {
        Clock::default()
    }

    /// Takes in a Pong of another voter: it answers the Ping that left at `ping_sent`, and says that the peer's wall
    /// clock stood at `wall`.
    pub(crate) fn sample(&mut self, peer: ReplicaId, ping_sent: Instant, received: Now, wall: Timestamp) {
        let now = received.monotonic;
        // An echo of another boot, or no echo of ours at all.
        if now < ping_sent {
            return;
        }
        let sample = Sample { wall, earliest: ping_sent, latest: now };
        if WINDOW < sample.round_trip() {
            return;
        }
        self.samples.retain(|_, old| old.age(now) <= WINDOW);
        let replaces = match self.samples.get(&peer) {
            None => self.samples.len() < VOTERS_MAX,
            Some(old) => {
                sample.round_trip() <= old.round_trip()
                    || FRESH < old.age(now)
                    || !sample.agrees_with(old, now)
            }
        };
        if replaces {
            self.samples.insert(peer, sample);
        }
    }

    /// The middle of all clocks that are known, our own among them: the best guess where no quorum agrees and the log
    /// has no time of its own yet. One clock that is an hour off does not move it far.
    pub(crate) fn middle(&self, now: Now) -> Timestamp {
        let fresh = self.samples.values().filter(|sample| sample.age(now.monotonic) <= WINDOW);
        let mut clocks: Vec<Timestamp> = fresh.map(|sample| sample.bounds(now.monotonic).0).collect();
        clocks.push(now.wall);
        clocks.sort_unstable();
        clocks[(clocks.len() - 1) / 2]
    }

    /// Whether a quorum agrees, and our own clock with it.
    pub(crate) fn state(&self, now: Now, quorum: usize) -> Clocks {
        match self.agreed(now, quorum) {
            None => Clocks::Disagree,
            Some((low, high)) if now.wall + TOLERANCE < low || high + TOLERANCE < now.wall => {
                Clocks::OwnIsOff
            }
            Some(_) => Clocks::Agree,
        }
    }

    /// The interval that lies within the bounds of the most clocks, our own among them, if those are at least
    /// `quorum`. Our own clock is read without delay: its bounds are the tolerance alone.
    pub(crate) fn agreed(&self, now: Now, quorum: usize) -> Option<(Timestamp, Timestamp)> {
        let fresh = self.samples.values().filter(|sample| sample.age(now.monotonic) <= WINDOW);
        let mut edges: Vec<(Timestamp, Edge)> = Vec::with_capacity(2 * (self.samples.len() + 1));
        for (low, high) in fresh.map(|sample| sample.bounds(now.monotonic)).chain([(now.wall, now.wall)]) {
            let low = Timestamp::from_nanos(low.nanos().saturating_sub(TOLERANCE.as_nanos() as u64));
            edges.push((low, Edge::Opens));
            edges.push((high + TOLERANCE, Edge::Closes));
        }
        edges.sort();

        let (mut open, mut most, mut best) = (0, 0, None);
        for (at, (place, edge)) in edges.iter().enumerate() {
            match edge {
                Edge::Opens => open += 1,
                Edge::Closes => open -= 1,
            }
            if most < open {
                most = open;
                // Nothing opens between here and the next edge, so that is where the first of these closes.
                best = edges.get(at + 1).map(|(end, _)| (*place, *end));
            }
        }
        if quorum <= most { best } else { None }
    }
}

/// Opens sorts before Closes: intervals that only touch do meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    Opens,
    Closes,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MILLI: u64 = 1_000_000;
    /// True time when the monotonic clock stands at 0.
    const EPOCH: u64 = 1_700_000_000 * SECOND;

    /// Our clocks `at` nanoseconds after the start, the wall clock off by so much.
    fn now(at: u64, off: i64) -> Now {
        Now {
            monotonic: Instant::from_nanos(at),
            wall: Timestamp::from_nanos((EPOCH + at).saturating_add_signed(off)),
        }
    }

    /// A peer whose clock is off by so much answers a Ping of `at`, half of the round trip each way.
    fn pong(clock: &mut Clock, peer: u8, at: u64, round_trip: u64, off: i64) {
        let wall = Timestamp::from_nanos((EPOCH + at + round_trip / 2).saturating_add_signed(off));
        let received = now(at + round_trip, 0);
        clock.sample(ReplicaId::new(peer), Instant::from_nanos(at), received, wall);
    }

    /// By how much the agreed bounds differ from true time, in milliseconds.
    fn agreed(clock: &Clock, at: u64, off: i64, quorum: usize) -> Option<(i64, i64)> {
        let (low, high) = clock.agreed(now(at, off), quorum)?;
        assert!(low <= high);
        let from_true = |time: Timestamp| (time.nanos() as i64 - (EPOCH + at) as i64) / MILLI as i64;
        Some((from_true(low), from_true(high)))
    }

    #[test]
    fn one_clock_alone_agrees_with_itself_and_with_no_quorum_of_more() {
        let clock = Clock::new();
        assert_eq!(agreed(&clock, 5, 0, 1), Some((-500, 500)));
        assert_eq!(agreed(&clock, 5, 0, 2), None);
    }

    #[test]
    fn clocks_that_are_right_agree_on_true_time() {
        let mut clock = Clock::new();
        pong(&mut clock, 1, 0, 2 * MILLI, 3 * MILLI as i64);
        pong(&mut clock, 2, 0, 2 * MILLI, -3 * MILLI as i64);
        let (low, high) = agreed(&clock, SECOND, 0, 3).unwrap();
        assert!(low < 0 && 0 < high);
        assert_eq!((low, high), (-498, 498));
    }

    #[test]
    fn one_bad_clock_of_three_neither_blocks_nor_poisons() {
        let hour = 3600 * SECOND as i64;
        for off in [hour, -hour, 2 * SECOND as i64, -2 * SECOND as i64, i64::MIN, i64::MAX] {
            // A peer's.
            let mut clock = Clock::new();
            pong(&mut clock, 1, 0, MILLI, 0);
            pong(&mut clock, 2, 0, MILLI, off);
            assert_eq!(agreed(&clock, SECOND, 0, 2), Some((-500, 500)), "a peer off by {off} ns");
            // Ours: what we clamp into is what the others say.
            let mut clock = Clock::new();
            pong(&mut clock, 1, 0, MILLI, 0);
            pong(&mut clock, 2, 0, MILLI, 0);
            assert_eq!(agreed(&clock, SECOND, off, 2), Some((-500, 500)), "ours off by {off} ns");
        }
    }

    #[test]
    fn without_a_quorum_that_agrees_there_is_no_time() {
        let mut clock = Clock::new();
        pong(&mut clock, 1, 0, MILLI, 10 * SECOND as i64);
        pong(&mut clock, 2, 0, MILLI, -10 * SECOND as i64);
        assert_eq!(agreed(&clock, SECOND, 0, 2), None);
    }

    #[test]
    fn where_nobody_agrees_the_middle_clock_is_the_best_guess() {
        let seconds = |seconds: i64| seconds * SECOND as i64;
        let mut clock = Clock::new();
        assert_eq!(clock.middle(now(5, 0)), now(5, 0).wall);
        for (peer, off) in [(1, 3), (2, -3), (3, 1), (4, -2)] {
            pong(&mut clock, peer, 0, MILLI, seconds(off));
        }
        assert_eq!(agreed(&clock, SECOND, seconds(3_600), 3), None);
        let middle = clock.middle(now(SECOND, seconds(3_600))).nanos() as i64 - (EPOCH + SECOND) as i64;
        assert!(middle.abs() <= seconds(1), "{middle} ns off");
    }

    #[test]
    fn clocks_agree_up_to_a_second_apart() {
        for (apart, agree) in [(990, true), (1010, false)] {
            let mut clock = Clock::new();
            pong(&mut clock, 1, 0, MILLI, apart * MILLI as i64);
            assert_eq!(agreed(&clock, SECOND, 0, 2).is_some(), agree, "{apart} ms apart");
        }
    }

    #[test]
    fn our_clock_is_off_by_more_than_a_second_only_where_a_quorum_of_others_says_so() {
        let mut clock = Clock::new();
        pong(&mut clock, 1, 0, MILLI, 0);
        let off_by = |clock: &Clock, millis: i64| clock.state(now(SECOND, millis * MILLI as i64), 2);
        assert_eq!(off_by(&clock, 0), Clocks::Agree);
        assert_eq!(off_by(&clock, 60_000), Clocks::Disagree);
        pong(&mut clock, 2, 0, MILLI, 0);
        for millis in [0, 990, -990] {
            assert_eq!(off_by(&clock, millis), Clocks::Agree, "{millis} ms");
        }
        for millis in [1_010, -1_010, 3_600_000, -3_600_000] {
            assert_eq!(off_by(&clock, millis), Clocks::OwnIsOff, "{millis} ms");
        }
    }

    #[test]
    fn a_sample_counts_for_twenty_seconds() {
        let mut clock = Clock::new();
        pong(&mut clock, 1, 0, MILLI, 0);
        assert!(agreed(&clock, MILLI + 20 * SECOND, 0, 2).is_some());
        assert!(agreed(&clock, MILLI + 20 * SECOND + 1, 0, 2).is_none());
    }

    #[test]
    fn steady_pongs_keep_a_sample_in_the_window_though_the_first_was_the_best() {
        let mut clock = Clock::new();
        pong(&mut clock, 1, 0, MILLI, 0);
        for second in 1..120 {
            if second % 3 == 0 {
                pong(&mut clock, 1, second * SECOND, 2 * MILLI, 0);
            }
            assert!(agreed(&clock, second * SECOND + 5 * MILLI, 0, 2).is_some(), "after {second} s");
        }
    }

    #[test]
    fn the_quickest_round_trip_is_believed() {
        let mut clock = Clock::new();
        pong(&mut clock, 1, 0, 2 * MILLI, 300 * MILLI as i64);
        assert_eq!(agreed(&clock, 2 * SECOND, 0, 2), Some((-201, 500)));
        // Says less of the same clock.
        pong(&mut clock, 1, 0, SECOND, 300 * MILLI as i64);
        assert_eq!(agreed(&clock, 2 * SECOND, 0, 2), Some((-201, 500)));
        // Says more.
        pong(&mut clock, 1, SECOND, 0, 300 * MILLI as i64);
        assert_eq!(agreed(&clock, 2 * SECOND, 0, 2), Some((-200, 500)));
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once() {
        let mut clock = Clock::new();
        pong(&mut clock, 1, 0, MILLI, 10 * SECOND as i64);
        assert_eq!(agreed(&clock, SECOND, 0, 2), None);
        pong(&mut clock, 1, SECOND, 3 * MILLI, 0);
        assert!(agreed(&clock, 2 * SECOND, 0, 2).is_some());
    }

    #[test]
    fn what_answers_no_ping_of_ours_is_no_sample() {
        let mut clock = Clock::new();
        // From the future, and from an age ago.
        clock.sample(ReplicaId::new(1), Instant::from_nanos(9), now(8, 0), Timestamp::from_nanos(EPOCH));
        clock.sample(ReplicaId::new(1), Instant::ZERO, now(21 * SECOND, 0), Timestamp::from_nanos(EPOCH));
        assert_eq!(clock, Clock::new());
    }

    #[test]
    fn samples_are_bounded_however_many_peers_answer() {
        let mut clock = Clock::new();
        for peer in 0..=u8::MAX {
            pong(&mut clock, peer, 0, MILLI, 0);
        }
        assert_eq!(clock.samples.len(), VOTERS_MAX);
        // The known ones still renew theirs, and those that fell silent make room.
        pong(&mut clock, 0, 15 * SECOND, MILLI, 0);
        pong(&mut clock, 200, 25 * SECOND, MILLI, 0);
        assert_eq!(clock.samples.keys().map(|peer| peer.value()).collect::<Vec<_>>(), [0, 200]);
    }

    #[test]
    fn a_wall_clock_at_either_end_of_time_does_no_harm() {
        let mut clock = Clock::new();
        let peer = |clock: &mut Clock, peer, wall| {
            clock.sample(ReplicaId::new(peer), Instant::ZERO, now(MILLI, 0), wall);
        };
        peer(&mut clock, 1, Timestamp::ZERO);
        peer(&mut clock, 2, Timestamp::MAX);
        peer(&mut clock, 3, Timestamp::MAX);
        let now = Now { monotonic: Instant::from_nanos(SECOND), wall: Timestamp::ZERO };
        let (_, high) = clock.agreed(now, 2).unwrap();
        assert!(high == Timestamp::MAX || high.nanos() < 2 * SECOND);
        assert_eq!(clock.agreed(now, 3), None);
    }
}
