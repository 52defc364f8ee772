//! What the process counts, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! counters {
    (counts { $($(#[$doc:meta])* $name:ident,)* } gauges { $($(#[$gauge_doc:meta])* $gauge:ident,)* } histograms { $($(#[$histogram_doc:meta])* $histogram:ident,)* }) => {
        /// Counts since the start of the process, and how things are. Every field is one line of `/metrics`, or one histogram.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: Counter,)*
            $($(#[$gauge_doc])* pub(crate) $gauge: Gauge,)*
            $($(#[$histogram_doc])* pub(crate) $histogram: Histogram,)*
        }

        impl Counters {
            /// Name and value of each.
            pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.value()),)*]
            }

            /// Name and value of each gauge.
            pub(crate) fn gauges(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($gauge), self.$gauge.value()),)*]
            }

            /// Name and histogram of each.
            pub(crate) fn histograms(&self) -> Vec<(&'static str, &Histogram)> {
                vec![$((stringify!($histogram), &self.$histogram),)*]
            }
        }
    };
}

counters! {
    counts {
        /// Messages received from peers.
        peer_messages_received,
        /// Messages queued for peers, counted once a recipient.
        peer_messages_sent,
        /// Messages to peers dropped because a queue was full.
        peer_messages_dropped,
        /// Messages of a newer release, dropped.
        peer_messages_unknown,
        /// Prepares dropped because the disk is behind.
        peer_prepares_shed,
        /// Connections of peers closed because of bad bytes.
        peer_connections_bad,
        /// Times that a peer was reported unreachable.
        peer_unreachable,
        /// Connections of clients accepted.
        client_connections,
        /// Connections refused because there were too many.
        client_connections_refused,
        /// Connections of clients closed because of bad bytes.
        client_connections_bad,
        /// Connections of clients closed because they did not read their answers.
        client_connections_slow,
        /// Submissions taken.
        submissions,
        /// Queries taken.
        queries,
        /// Answers given: decided by the log.
        answers_decided,
        /// Answers given: not executed.
        answers_not_executed,
        /// Answers given: nobody can say.
        answers_indeterminate,
        /// Writes handed to the WAL thread.
        wal_writes,
        /// Jobs carried out by the WAL thread.
        wal_jobs,
        /// Bytes of the log read back and checked.
        wal_bytes_scrubbed,
        /// Groups of the log found damaged, by the start or while running.
        wal_groups_damaged,
        /// Blocks of the log's file that held nothing and could not be read: they were filled with zeros.
        wal_blots,
        /// Rounds of scrubbing through the whole file of the log.
        wal_scrub_rounds,
        /// Copies of the superblock found damaged, by the start (a power cut in the middle of a write leaves some, too) or
        /// while running, and written again.
        superblock_copies_damaged,
        /// Times that a write took 100 ms or longer.
        disk_stalls,
        /// Attempts started.
        attempts_started,
        /// Attempts that never passed the gate.
        attempts_abandoned,
        /// Attempts whose first byte may have left after the gate closed: the process was stopped in between.
        attempts_left_late,
        /// View changes that this replica took part in.
        view_changes,
        /// Times that this replica gave the primacy up of its own accord.
        abdications,
        /// States written as checkpoints.
        checkpoints_written,
        /// States restored from checkpoints.
        checkpoints_restored,
        /// Times that the disk refused a part of a checkpoint.
        checkpoint_disk_errors,
        /// Bytes of checkpoints read back and checked.
        vault_bytes_scrubbed,
        /// Rounds of scrubbing through all checkpoints.
        vault_scrub_rounds,
        /// Chunks of the newest checkpoint found damaged.
        chunks_damaged,
        /// Chunks of the newest checkpoint that peers have sent, or that were written anew from memory.
        chunks_repaired,
        /// Chunks read for peers.
        chunks_served,
        /// States kept to be carried away as backups.
        backups,
        /// Chunks that peers have sent.
        chunks_fetched,
        /// Transfers of a peer's state that were begun.
        state_transfers,
    }
    gauges {
        /// Bytes of the log's file.
        wal_bytes,
        /// Bytes of it that hold groups which are still needed.
        wal_used_bytes,
        /// Bytes of the log's file that the present round of scrubbing has read.
        wal_scrub_bytes,
        /// Bytes of all files of checkpoints.
        vault_bytes,
        /// Bytes of those that are needed.
        vault_live_bytes,
        /// Files of checkpoints.
        vault_packs,
        /// Bytes of checkpoints that the present round of scrubbing has read.
        vault_scrub_bytes,
        /// Bytes that the disk still has for anybody.
        disk_available_bytes,
        /// The pause that this primary makes after each 64 KiB of an op because a voter lags, in milliseconds.
        intake_pause_ms,
        /// All such pauses since the start of the process, in milliseconds.
        intake_paused_ms,
        /// 1 while there is no room for the next checkpoint.
        disk_short,
        /// The op before which execution has halted; 0 while it goes on.
        halted_op,
        /// The longest that a write has taken, in milliseconds, of those that took 100 or more.
        disk_stall_ms_max,
        /// From the start of the process to the restored checkpoint, in milliseconds.
        start_restored_ms,
        /// From the start of the process until everything was executed that the disk held, in milliseconds.
        start_replayed_ms,
    }
    histograms {
        /// Executing one op.
        apply,
        /// Answering a query.
        query,
        /// Freezing the state at a checkpoint: for so long nothing is executed.
        freeze,
        /// Writing a checkpoint.
        checkpoint_write,
        /// Restoring a state from a checkpoint.
        checkpoint_restore,
    }
}

/// One count.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub(crate) fn add(&self) {
        self.add_many(1);
    }

    /// Several more.
    pub(crate) fn add_many(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// How many.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of a histogram's buckets, in microseconds.
const BUCKETS: [u64; 20] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000,
    1_000_000, 5_000_000, 20_000_000,
];

/// How something is now.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    /// It is so now.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// It is at least so.
    pub(crate) fn raise(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    /// How it is.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took, how often.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// By the bucket, and one for what is beyond the last.
    counts: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// It took this long once more.
    pub(crate) fn record(&self, took: Duration) {
        let micros = took.as_nanos().div_ceil(1_000);
        let bucket = BUCKETS.partition_point(|bound| u128::from(*bound) < micros);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Upper bounds in seconds, each with how often it took at most that long.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        let mut count = 0;
        let bounds = BUCKETS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        bounds
            .zip(&self.counts)
            .map(|(bound, bucket)| {
                count += bucket.load(Ordering::Relaxed);
                (bound, count)
            })
            .collect()
    }

    /// Seconds in all.
    pub(crate) fn seconds(&self) -> f64 {
        self.nanos.load(Ordering::Relaxed) as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_every_bucket_that_is_not_too_small_for_it() {
        let histogram = Histogram::default();
        for nanos in [0, 1_000, 1_001, 5_000_000, 5_000_001, 60_000_000_000] {
            histogram.record(Duration::from_nanos(nanos));
        }
        let at = |seconds: f64| {
            let buckets = histogram.buckets();
            buckets.iter().find(|(bound, _)| *bound == seconds).map(|(_, count)| *count)
        };
        assert_eq!(at(0.000_001), Some(2));
        assert_eq!(at(0.000_002), Some(3));
        assert_eq!(at(0.002), Some(3));
        assert_eq!(at(0.005), Some(4));
        assert_eq!(at(0.01), Some(5));
        assert_eq!(at(f64::INFINITY), Some(6));
        assert!((histogram.seconds() - 60.010_002).abs() < 1e-3);
    }
}
