//! A person at the cluster, who freezes sinks and thaws them.

use chronon_kernel::{Engine, SinkSpec};

use crate::{CallKind, World};

/// The client who sets the cluster up, and looks after it from then on.
const OPERATOR: u32 = 0;

impl World {
    /// Freezes every sink, or thaws it, as the newest replica shows it.
    pub(crate) fn set_frozen(&mut self, frozen: bool) {
        let running = self.machines.iter().filter(|machine| machine.is_running());
        let engines = running.filter_map(|machine| Some(machine.process.as_ref()?.back.engine()));
        let newest = engines.max_by_key(|engine| engine.applied());
        for sink in newest.map_or_else(Vec::new, Engine::sinks) {
            let spec = Box::new(SinkSpec { frozen, ..sink.spec });
            // Whoever asks this again, without knowing what became of it, does not undo what came after it.
            self.ask(OPERATOR, CallKind::SinkSet { name: sink.name, spec, revision: sink.revision });
        }
    }
}
