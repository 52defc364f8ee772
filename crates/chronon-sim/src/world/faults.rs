//! What can be done to a world from outside.

use std::cmp::Reverse;

use chronon_node::FrontInput;
use chronon_vsr::{Duration, Instant};

use super::index;
use crate::event::{Event, Fault};
use crate::trace::Who;
use crate::{CallKind, World};

impl World {
    /// Does something to the world, now.
    pub fn inflict(&mut self, fault: Fault) {
        // What heals everything heals mostly what is well.
        if self.changes_something(fault) {
            self.trace.note(self.now, Who::Fault, 0xfa, || fault.to_string());
        }
        match fault {
            Fault::Kill(replica) => self.kill(index(replica)),
            Fault::KillWithin(replica, outputs) => {
                let machine = &mut self.machines[index(replica)];
                machine.outputs_left = machine.process.is_some().then_some(outputs);
            }
            Fault::PowerOff(replica) => {
                let at = index(replica);
                self.kill(at);
                self.machines[at].disk.power_cut();
                let boot = Duration::from_millis(self.prng.below(1_000_000));
                let since = self.now;
                // The monotonic clock starts somewhere else; it never shows less than zero.
                self.machines[at].clock.reboot(boot + since.since(Instant::ZERO));
            }
            Fault::Start(replica) => {
                // Who starts one that did not die after all means it to live.
                self.machines[index(replica)].outputs_left = None;
                self.start(index(replica));
            }
            Fault::Pause(replica) => self.machines[index(replica)].paused = true,
            Fault::Resume(replica) => self.resume(index(replica)),
            Fault::Cut(from, to) => self.network.set_cut(from, to, true),
            Fault::Mend(from, to) => self.network.set_cut(from, to, false),
            Fault::MendAll => self.network.heal(),
            Fault::DiskStall(replica, stall) => self.stall(index(replica), stall),
            Fault::Harm(replica, region, harm, which) => {
                self.promises.on_damage(replica);
                self.machines[index(replica)].beyond = true;
                self.machines[index(replica)].disk.harm(region, harm, which);
            }
            Fault::DiskFull(replica, full) => self.machines[index(replica)].disk.set_full(full),
            Fault::SlowExecution(replica, each) => self.machines[index(replica)].back_slow = each,
            Fault::DiskError(replica) => self.machines[index(replica)].disk.fail_next(),
            Fault::Rot(replica, page) => {
                self.machines[index(replica)].beyond = true;
                self.rot(index(replica), page);
            }
            Fault::Clock(replica, skew) => self.machines[index(replica)].clock.set_skew(skew),
            Fault::StepDown(replica) => self.give_front(index(replica), FrontInput::StepDown),
        }
    }

    /// Whether the world is not so already.
    fn changes_something(&self, fault: Fault) -> bool {
        let machine = |replica| &self.machines[index(replica)];
        match fault {
            Fault::Kill(replica) | Fault::KillWithin(replica, _) => machine(replica).process.is_some(),
            Fault::Start(replica) => {
                machine(replica).process.is_none() || machine(replica).outputs_left.is_some()
            }
            Fault::Pause(replica) => !machine(replica).paused,
            Fault::Resume(replica) => machine(replica).paused,
            Fault::Cut(from, to) => self.network.passes(from, to),
            Fault::Mend(from, to) => !self.network.passes(from, to),
            Fault::MendAll => !self.network.is_whole(),
            Fault::Clock(replica, skew) => machine(replica).clock.skew() != skew,
            Fault::PowerOff(_)
            | Fault::DiskStall(..)
            | Fault::SlowExecution(..)
            | Fault::DiskError(_)
            | Fault::Rot(..)
            | Fault::Harm(..)
            | Fault::DiskFull(..)
            | Fault::StepDown(_) => true,
        }
    }

    /// Does something to the world later.
    pub fn inflict_after(&mut self, after: Duration, fault: Fault) {
        self.schedule(after, Event::Fault(fault));
    }

    /// What was to end a misfortune later ends nothing any more: what comes now may be meant to last.
    pub(crate) fn forget_amends(&mut self) {
        let amends = |fault: &Fault| match fault {
            Fault::MendAll | Fault::Start(_) | Fault::Resume(_) | Fault::Clock(..) => true,
            Fault::DiskStall(_, length) => length.is_zero(),
            _ => false,
        };
        self.heap.retain(|Reverse(later)| !matches!(&later.event, Event::Fault(fault) if amends(fault)));
    }

    /// Changes how all wires behave.
    pub fn set_network(&mut self, config: crate::NetworkConfig) {
        self.config.network = config;
        self.network.set_config(config);
    }

    /// Changes how all disks behave, and ends their stalls.
    pub fn set_disks(&mut self, config: crate::DiskConfig) {
        self.config.disk = config;
        for at in 0..self.machines.len() {
            self.machines[at].disk.set_config(config);
            self.stall(at, Duration::ZERO);
        }
    }

    /// Changes how all sinks behave.
    pub fn set_sinks(&mut self, behaviour: crate::SinkBehaviour) {
        self.config.sinks = behaviour;
        for sink in self.sinks.values_mut() {
            sink.set_behaviour(behaviour);
        }
    }

    /// Changes what the clients do from their next call on.
    pub fn set_clients(&mut self, config: crate::ClientConfig) {
        self.config.clients = config;
    }

    /// Gives a client something to do after what it has to do already.
    pub fn ask(&mut self, client: u32, kind: CallKind) {
        let life = self.clients[client as usize].life;
        self.clients[client as usize].script.push_back(kind);
        self.schedule(Duration::ZERO, Event::ClientWake { client, life });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cluster, R0, R1};

    /// Seed 500000110: the end of a partition of the phase before made a replica heard that was to be mute for good.
    #[test]
    fn what_was_to_end_one_misfortune_does_not_end_the_next() {
        let mut c = Cluster::new(3);
        c.world().inflict(Fault::Cut(R0, R1));
        c.world().inflict_after(Duration::from_millis(10), Fault::MendAll);
        c.world().inflict_after(Duration::from_millis(10), Fault::Start(R1));
        c.world().forget_amends();
        c.world().inflict(Fault::MendAll);
        c.world().inflict(Fault::Cut(R1, R0));
        c.world().inflict(Fault::Kill(R1));
        c.run(Duration::from_millis(50));
        assert!(c.world().network.passes(R0, R1) && !c.world().network.passes(R1, R0));
        assert!(c.world().replica(R1).is_none());
    }
}
