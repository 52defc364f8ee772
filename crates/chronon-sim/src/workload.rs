//! What a world runs and what its clients ask for: a machine, its sinks, its commands and queries.

use chronon_kernel::{Attempt, Engine, EngineOptions, SinkName, SinkSpec};
use chronon_vsr::Prng;

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
    fn check_quiet(&self, engine: &dyn Engine) -> Result<(), String>;
}
