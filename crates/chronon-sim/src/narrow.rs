//! What a failure needs and what it does not: kinds of fault are taken away one by one, and clients and calls made
//! fewer, as long as the same judge goes on objecting.

use crate::{Menu, Report, Swarm};

/// A failing seed in the smallest world that was found to fail like it.
#[derive(Clone)]
pub struct Narrowed {
    /// How to run it.
    pub swarm: Swarm,
    /// What becomes of it.
    pub report: Report,
    /// How many worlds were run to find it.
    pub runs: u32,
}

impl Swarm {
    /// Makes the world of a failing seed smaller while it fails. Runs a few dozen worlds.
    pub fn narrow(&self, failed: &Report) -> Narrowed {
        let mut narrowed = Narrowed { swarm: self.clone(), report: failed.clone(), runs: 0 };
        let mut menu = failed.menu;
        // To take one of many kinds away changes when all the others strike: often only much less fails again.
        if let Some(few) = menu.few().into_iter().find(|few| *few != failed.menu && narrowed.fails_with(*few))
        {
            menu = few;
        }
        while let Some(fewer) = menu.without_one().into_iter().find(|fewer| narrowed.fails_with(*fewer)) {
            menu = fewer;
        }
        let clients = failed.config.clients.clients;
        let mut calls = failed.config.clients.calls * clients;
        while 1 < calls && narrowed.fails_when(|swarm| swarm.calls = Some(calls / 2)) {
            calls /= 2;
        }
        let mut clients = clients;
        while 1 < clients && narrowed.fails_when(|swarm| swarm.clients = Some(clients / 2)) {
            clients /= 2;
        }
        narrowed
    }
}

impl Narrowed {
    fn fails_with(&mut self, menu: Menu) -> bool {
        self.fails_when(|swarm| swarm.menu = Some(menu))
    }

    /// Runs a smaller world; keeps it if the same judge objects.
    fn fails_when(&mut self, change: impl FnOnce(&mut Swarm)) -> bool {
        let mut swarm = self.swarm.clone();
        change(&mut swarm);
        self.runs += 1;
        let report = swarm.run_seed(self.report.seed);
        let judge = |report: &Report| report.failure.as_ref().map(|(_, violation)| violation.checker);
        let same = judge(&report) == judge(&self.report);
        if same {
            *self = Narrowed { swarm, report, runs: self.runs };
        }
        same
    }

    /// What says it all to whoever runs it again: the words after the seed.
    pub fn flags(&self) -> String {
        let Swarm { replicas, menu, clients, calls, .. } = &self.swarm;
        let mut flags = String::new();
        let mut say = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                flags.push_str(&format!(" --{name} {value}"));
            }
        };
        say("replicas", replicas.map(|replicas| replicas.to_string()));
        say("faults", menu.map(|menu| menu.to_string()));
        say("clients", clients.map(|clients| clients.to_string()));
        say("calls", calls.map(|calls| calls.to_string()));
        if self.swarm.beyond {
            flags.push_str(" --beyond");
        }
        flags
    }
}
