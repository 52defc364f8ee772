//! What a batch of seeds came to, told while it runs and at its end.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use chronon_sim::{Report, coverage};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{PROGRESS_EVERY, per_minute};

/// Counts, and a bar on a terminal.
pub(super) struct Tally {
    bar: Option<ProgressBar>,
    began: Instant,
    told: Instant,
    took: Duration,
    runs: u64,
    failed: u64,
    commands: u64,
    /// How many seeds reached each protocol event.
    reached: BTreeMap<String, u64>,
}

impl Tally {
    /// Before the first of so many seeds, or of as many as there is time for.
    pub(super) fn new(seeds: Option<u64>, until: Option<Duration>) -> Tally {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match (seeds, until) {
                (Some(seeds), _) => {
                    (ProgressBar::new(seeds), "{bar:30} {pos}/{len} seeds, {msg}, {eta} left")
                }
                (None, _) => (ProgressBar::no_length(), "{spinner} {pos} seeds in {elapsed}, {msg}"),
            };
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let now = Instant::now();
        Tally {
            bar,
            began: now,
            told: now,
            took: Duration::ZERO,
            runs: 0,
            failed: 0,
            commands: 0,
            reached: BTreeMap::new(),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A seed has ended.
    pub(super) fn count(&mut self, report: &Report) {
        self.runs += 1;
        self.commands += report.commands as u64;
        self.failed += u64::from(report.failure.is_some());
        for event in report.coverage.keys() {
            *self.reached.entry(event.clone()).or_default() += 1;
        }
        let pace = per_minute(self.runs, self.elapsed());
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.runs);
                bar.set_message(format!("{pace:.0} a minute, {} failed", self.failed));
            }
            None if PROGRESS_EVERY <= self.told.elapsed() => {
                self.told = Instant::now();
                eprintln!("{} seeds, {pace:.0} a minute, {} failed", self.runs, self.failed);
            }
            None => {}
        }
    }

    /// Nothing more will be counted.
    pub(super) fn end(&mut self) {
        self.took = self.elapsed();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// What so many seeds should have reached and did not; nothing for a batch that is too small to tell.
    pub(super) fn missed(&self) -> Vec<&'static str> {
        if self.runs < coverage::BATCH_MIN { Vec::new() } else { coverage::unreached(&self.reached) }
    }

    /// For people.
    pub(super) fn summary(&self, failures: usize) -> String {
        let mut text = format!(
            "{} seeds, {failures} failed, {} commands, {:.1} s, {:.0} seeds a minute",
            self.runs,
            self.commands,
            self.took.as_secs_f64(),
            per_minute(self.runs, self.took)
        );
        for (event, seeds) in &self.reached {
            text.push_str(&format!("\n  {seeds:>6} seeds reached {event}"));
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self, failures: &[Report], smallest: Option<Value>) -> Value {
        json!({
            "seeds": self.runs,
            "failed": failures.len(),
            "commands": self.commands,
            "seconds": self.took.as_secs_f64(),
            "seeds_per_minute": per_minute(self.runs, self.took),
            "events_reached": self.reached,
            "events_missed": self.missed(),
            "failures": failures.iter().map(report_json).collect::<Vec<_>>(),
            "smallest": smallest,
        })
    }
}

/// A report for programs.
pub(super) fn report_json(report: &Report) -> Value {
    let failure = report.failure.as_ref().map(|(phase, violation)| {
        json!({
            "phase": format!("{phase:?}").to_lowercase(),
            "checker": format!("{:?}", violation.checker).to_lowercase(),
            "what": violation.what,
        })
    });
    json!({
        "seed": report.seed,
        "failure": failure,
        "replicas": report.replicas,
        "faults": report.menu.to_string(),
        "clients": report.config.clients.clients,
        "ops": report.ops,
        "commands": report.commands,
        "starts": report.starts,
        "faults_inflicted": report.faults,
        "world_seconds": report.world_time.as_secs_f64(),
        "fingerprint": format!("{:016x}", report.fingerprint),
        "events": report.coverage,
    })
}
