//! Many seeds at once, one world a thread: worlds share nothing, so it changes nothing but how long it takes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use crate::{Report, Swarm};

impl Swarm {
    /// Runs these seeds on so many threads and tells of each as it ends, in whatever order they end. The callback says
    /// whether to go on. Returns the failures, by seed.
    pub fn run_seeds_on(
        &self,
        jobs: usize,
        seeds: Range<u64>,
        mut progress: impl FnMut(&Report) -> bool,
    ) -> Vec<Report> {
        if jobs <= 1 {
            return self.run_seeds(seeds, progress);
        }
        let (next, end) = (AtomicU64::new(seeds.start), seeds.end);
        let stop = AtomicBool::new(false);
        let mut failures = Vec::new();
        std::thread::scope(|scope| {
            let (sender, reports) = mpsc::sync_channel::<Report>(jobs);
            for _ in 0..jobs {
                let (sender, next, stop) = (sender.clone(), &next, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        // Never past the end, which may be the last number there is.
                        let step = |seed| if seed < end { Some(seed + 1) } else { None };
                        let seed = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
                        let Ok(seed) = seed else { return };
                        if sender.send(self.run_and_compare(seed)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for report in reports {
                if !progress(&report) {
                    stop.store(true, Ordering::Relaxed);
                }
                if report.failure.is_some() {
                    failures.push(report);
                }
            }
        });
        failures.sort_by_key(|report| report.seed);
        failures
    }
}
