//! What a world runs and what its clients ask for: a machine, its sinks, its commands and queries.

use std::collections::BTreeMap;

use chronon_kernel::{AbortReason, Attempt, Engine, EngineOptions, RequestId, SinkName, SinkSpec};
use chronon_vsr::{Duration, Op, Prng, Timestamp};

use crate::checker::Replayed;
use crate::{Begun, Completed, Sink, SinkBehaviour, SinkKind};

/// A machine and the life around it. Implement it for your own machine to run that in the simulator.
pub trait Workload {
    /// A fresh engine around the machine, as a replica starts with it.
    fn engine(&self, options: EngineOptions) -> Box<dyn Engine>;

    /// The sinks that are set before anything else happens.
    fn sinks(&self) -> Vec<(SinkName, SinkSpec)>;

    /// The commands that set the machine up, in order, before the clients begin.
    fn setup(&self) -> Vec<Vec<u8>>;

    /// A client's next command, encoded.
    fn command(&mut self, prng: &mut Prng) -> Vec<u8>;

    /// A client's next query, encoded.
    fn query(&mut self, prng: &mut Prng) -> Vec<u8>;

    /// What the sink answers to this attempt once it has acted: the machine's encoded outcome. A function of the
    /// effect's key and payload alone.
    fn outcome(&self, attempt: &Attempt) -> Vec<u8>;

    /// What a sink is able to do, and how it behaves in a seed that drew this for all sinks. A sink keeps just what its
    /// contract needs of it, unless the workload knows better.
    fn sink(&self, _name: &SinkName, spec: &SinkSpec, drawn: SinkBehaviour) -> (SinkKind, SinkBehaviour) {
        (SinkKind::of(spec.contract), drawn)
    }

    /// When the effect with this body may start, as the command that emitted it asked. None: only the machine knows.
    fn terms(&self, _effect: &[u8]) -> Option<EffectTerms> {
        Some(EffectTerms::default())
    }

    /// Whether clients ask queries at all.
    fn asks_queries(&self) -> bool {
        true
    }

    /// A command in words, for traces.
    fn describe_command(&self, command: &[u8]) -> String {
        format!("a command of {} bytes", command.len())
    }

    /// A reply in words, for traces.
    fn describe_reply(&self, reply: &[u8]) -> String {
        format!("a reply of {} bytes", reply.len())
    }

    /// A query in words, for traces.
    fn describe_query(&self, query: &[u8]) -> String {
        format!("a query of {} bytes", query.len())
    }

    /// An answer to a query in words, for traces.
    fn describe_answer(&self, answer: &[u8]) -> String {
        format!("an answer of {} bytes", answer.len())
    }

    /// An effect in words, for traces.
    fn describe_effect(&self, effect: &[u8]) -> String {
        format!("an effect of {} bytes", effect.len())
    }

    /// Whether what clients saw fits together, whatever the log says: calls that ended well, in the order of their
    /// answers, and those whose end nobody heard.
    fn check_history(&self, _completed: &[Completed], _unended: &[Begun]) -> Result<(), String> {
        Ok(())
    }

    /// What must be true of the machine when all is quiet.
    fn check_quiet(&self, quiet: &Quiet<'_>) -> Result<(), String>;
}

/// When an effect may start, counted from its emission in log time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EffectTerms {
    /// Not before.
    pub after: Duration,
    /// Not any more. None: whenever.
    pub deadline: Option<Duration>,
}

impl EffectTerms {
    /// When it is due, if it was emitted then.
    pub(crate) fn due(&self, emitted: Timestamp) -> Timestamp {
        emitted + self.after
    }

    /// From when on it may not start any more.
    pub(crate) fn deadline(&self, emitted: Timestamp) -> Option<Timestamp> {
        self.deadline.map(|deadline| emitted + deadline)
    }
}

/// A run at its end, when everything has settled.
pub struct Quiet<'a> {
    /// A replay of the log.
    pub engine: &'a dyn Engine,
    /// Every command that was applied, in order: its encoding and that of its reply. Repeats are left out.
    pub applied: Vec<Applied<'a>>,
    /// Every command that was aborted, in order, and why.
    pub aborted: Vec<(&'a [u8], &'a AbortReason)>,
    /// The ops in which `settled`, `parked` or `timer` panicked, or emitted what it may not: what it did was undone.
    pub callbacks_aborted: Vec<Op>,
    /// What the replay showed on the way.
    pub(crate) replayed: &'a Replayed,
    /// The sinks with their ledgers.
    pub sinks: &'a BTreeMap<SinkName, Sink>,
}

/// A command that was applied.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// Where.
    pub at: RequestId,
    /// When, in nanoseconds of log time.
    pub log_time: u64,
    /// The encoded command.
    pub command: &'a [u8],
    /// The encoded reply.
    pub reply: &'a [u8],
}
