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
