//! The wires between replicas: late, lost, doubled, out of order, cut, and now and then a message from long ago.

use std::collections::VecDeque;
use std::sync::Arc;

use chronon_vsr::{Duration, Message, Prng, ReplicaId, VOTERS_MAX};

/// Messages of the past that a network remembers, to say them again.
const PAST_MAX: usize = 512;

/// How the wires behave. Chances are in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// No message is faster than this.
    pub delay_min: Duration,
    /// The mean of what comes on top, exponentially distributed: messages overtake one another.
    pub delay_mean: Duration,
    /// A message is lost.
    pub loss: u32,
    /// A message comes twice, the second time later.
    pub duplicate: u32,
    /// Any message from the past, of any incarnation, comes again.
    pub replay: u32,
}

impl NetworkConfig {
    /// A good LAN: a few dozen microseconds, nothing lost.
    pub const GOOD: NetworkConfig = NetworkConfig {
        delay_min: Duration::from_micros(20),
        delay_mean: Duration::from_micros(15),
        loss: 0,
        duplicate: 0,
        replay: 0,
    };
}

/// A message between two replicas, as its bytes.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The sender.
    pub from: ReplicaId,
    /// The receiver.
    pub to: ReplicaId,
    /// The message as the sender meant it, for filters and traces.
    pub message: Arc<Message>,
    /// The bytes that travel.
    pub bytes: Arc<[u8]>,
}

/// What a filter does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes its way.
    Pass,
    /// It is lost.
    Lose,
    /// It is kept until released.
    Hold,
    /// It arrives this much later.
    Delay(Duration),
}

type Filter = Box<dyn FnMut(&Envelope) -> Fate>;

/// All wires of a cluster.
pub(crate) struct Network {
    config: NetworkConfig,
    prng: Prng,
    /// `cut[from][to]`: nothing passes this way.
    cut: [[bool; VOTERS_MAX]; VOTERS_MAX],
    filter: Option<Filter>,
    held: Vec<Envelope>,
    past: VecDeque<Envelope>,
}

impl Network {
    pub(crate) fn new(config: NetworkConfig, prng: Prng) -> Network {
        Network {
            config,
            prng,
            cut: [[false; VOTERS_MAX]; VOTERS_MAX],
            filter: None,
            held: Vec::new(),
            past: VecDeque::new(),
        }
    }

    /// When, and how often, each of these arrives: at most the message, its double, and one from the past.
    pub(crate) fn send(&mut self, envelope: Envelope) -> Vec<(Duration, Envelope)> {
        let mut later = Duration::ZERO;
        if let Some(filter) = &mut self.filter {
            match filter(&envelope) {
                Fate::Pass => {}
                Fate::Lose => return Vec::new(),
                Fate::Hold => {
                    self.held.push(envelope);
                    return Vec::new();
                }
                Fate::Delay(delay) => later = delay,
            }
        }
        let mut arrivals = Vec::with_capacity(1);
        if self.config.replay != 0 {
            if self.chance(self.config.replay) && !self.past.is_empty() {
                let which = self.prng.below(self.past.len() as u64) as usize;
                arrivals.push((self.delay(), self.past[which].clone()));
            }
            // Not every message is remembered, so that the memory reaches back further than the last moment.
            if self.prng.chance(1, 8) {
                if PAST_MAX <= self.past.len() {
                    let which = self.prng.below(self.past.len() as u64) as usize;
                    self.past.swap_remove_back(which);
                }
                self.past.push_back(envelope.clone());
            }
        }
        if self.chance(self.config.duplicate) {
            let twice_as_late = self.delay() + self.delay();
            arrivals.push((twice_as_late * 4, envelope.clone()));
        }
        if !self.chance(self.config.loss) {
            arrivals.push((self.delay() + later, envelope));
        }
        arrivals
    }

    /// Whether anything passes this way now. Asked when a message leaves and again when it arrives.
    pub(crate) fn passes(&self, from: ReplicaId, to: ReplicaId) -> bool {
        !self.cut[usize::from(from.value())][usize::from(to.value())]
    }

    pub(crate) fn set_cut(&mut self, from: ReplicaId, to: ReplicaId, cut: bool) {
        self.cut[usize::from(from.value())][usize::from(to.value())] = cut;
    }

    /// Whether nothing is cut.
    pub(crate) fn is_whole(&self) -> bool {
        !self.cut.iter().flatten().any(|cut| *cut)
    }

    pub(crate) fn heal(&mut self) {
        self.cut = [[false; VOTERS_MAX]; VOTERS_MAX];
    }

    pub(crate) fn set_config(&mut self, config: NetworkConfig) {
        self.config = config;
        if config.replay == 0 {
            self.past.clear();
        }
    }

    pub(crate) fn set_filter(&mut self, filter: Option<Filter>) {
        self.filter = filter;
    }

    /// Everything that a filter held, in the order in which it was sent.
    pub(crate) fn take_held(&mut self) -> Vec<Envelope> {
        std::mem::take(&mut self.held)
    }

    /// Holds these, after what is held already.
    pub(crate) fn hold(&mut self, envelopes: Vec<Envelope>) {
        self.held.extend(envelopes);
    }

    pub(crate) fn held(&self) -> &[Envelope] {
        &self.held
    }

    /// How long one journey takes.
    pub(crate) fn delay(&mut self) -> Duration {
        self.config.delay_min + exponential(&mut self.prng, self.config.delay_mean)
    }

    fn chance(&mut self, parts: u32) -> bool {
        parts != 0 && self.prng.chance(u64::from(parts), 1_000_000)
    }
}

/// An exponentially distributed duration, cut at 16 times the mean. Integers only: −ln of a 64-bit fraction, from
/// the position of its first one (in 16 steps an octave), so that every machine draws the same.
pub(crate) fn exponential(prng: &mut Prng, mean: Duration) -> Duration {
    let draw = prng.next_u64().max(1);
    let octaves = u64::from(draw.leading_zeros());
    let below = (draw << octaves) >> 59 & 0xf;
    // −log2(draw / 2^64) in sixteenths, linear inside an octave.
    let sixteenths = octaves * 16 + (16 - below);
    // ln 2 = 0.693: 1 octave is 693 thousandths of the mean.
    let nanos = u64::try_from(mean.as_nanos()).unwrap_or(u64::MAX / 1024);
    Duration::from_nanos((nanos / 1000).saturating_mul(sixteenths * 693 / 16) + nanos % 1000).min(mean * 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_have_the_mean_that_was_asked_for() {
        let mut prng = Prng::new(7);
        let total: Duration = (0..100_000).map(|_| exponential(&mut prng, Duration::from_micros(100))).sum();
        let mean = total / 100_000;
        assert!(Duration::from_micros(90) < mean && mean < Duration::from_micros(112), "{mean:?}");
    }
}
