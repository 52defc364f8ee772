//! What a world runs and what its clients ask for: a machine, its sinks, its commands and queries.

use std::collections::BTreeMap;

use chronon_kernel::{Attempt, Engine, EngineOptions, RequestId, SinkName, SinkSpec};
use chronon_vsr::Prng;

use crate::Sink;

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

    /// What must be true of the machine when all is quiet.
    fn check_quiet(&self, quiet: &Quiet<'_>) -> Result<(), String>;
}

/// A run at its end, when everything has settled.
pub struct Quiet<'a> {
    /// A replay of the log.
    pub engine: &'a dyn Engine,
    /// Every command that was applied, in order: its encoding and that of its reply. Repeats are left out.
    pub applied: Vec<Applied<'a>>,
    /// The sinks with their ledgers.
    pub sinks: &'a BTreeMap<SinkName, Sink>,
}

/// A command that was applied.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// Where.
    pub at: RequestId,
    /// The encoded command.
    pub command: &'a [u8],
    /// The encoded reply.
    pub reply: &'a [u8],
}
