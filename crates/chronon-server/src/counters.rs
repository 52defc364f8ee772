//! What the process counts, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the start of the process. Every field is one line of `/metrics`.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: Counter,)*
        }

        impl Counters {
            /// Name and value of each.
            pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.value()),)*]
            }
        }
    };
}

counters! {
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
    /// Groups of the log found damaged while running, and written again.
    wal_groups_damaged,
    /// Attempts started.
    attempts_started,
    /// Attempts that never passed the gate.
    attempts_abandoned,
    /// View changes that this replica took part in.
    view_changes,
    /// Times that this replica gave the primacy up of its own accord.
    abdications,
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
