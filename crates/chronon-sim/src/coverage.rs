//! What a batch of seeds must have reached: a swarm that never sees an event proves nothing about it.

use std::collections::BTreeMap;

/// Events that every batch of [`BATCH_MIN`] seeds of the default swarm reaches: those of the protocol by the name of their
/// [`chronon_vsr::Event`], with its cause where it has one, the others by names of their own.
pub const EXPECTED: [&str; 62] = [
    "Abdicated(Asked)",
    "Abdicated(ClockOff)",
    "Abdicated(DiskFull)",
    "Abdicated(DiskStalled)",
    "Abdicated(Diverged)",
    "Abdicated(Unheard)",
    "AnswerWithheld",
    "Busy",
    "CheckpointDurable",
    "ClaimInDoubt",
    "ClockDegraded",
    "CommitAnswerLost",
    "DamagedEntryFound",
    "DeadlinePassed",
    "DelayedStarted",
    "DeskCancelled",
    "DeskRefused",
    "DeskResolved",
    "DeskRetried",
    "Diverged",
    "DuplicateAccepted",
    "EffectDelivered",
    "EffectExhausted",
    "EffectFailed",
    "EffectRetried",
    "EntryRepaired",
    "FirstCommitReached",
    "Forfeited",
    "Frozen",
    "GateRefused",
    "HeadUncertain",
    "KeyExpired",
    "KilledBetweenOutputs",
    "LogTruncated",
    "LogWrapped",
    "MachineCancelled",
    "MessageDropped",
    "PartitionChained",
    "PartitionFlapped",
    "PerformanceCompared",
    "PrimaryStarted",
    "ProbedTooEarly",
    "QuarantineLifted",
    "Quarantined",
    "ReadRoundConfirmed",
    "RepeatAnswered",
    "RolledBack",
    "SessionEvicted",
    "SinkDied",
    "Slipped",
    "StoredErrorReplayed",
    "SyncStarted",
    "Synced",
    "TimerSet",
    "TornTail",
    "ViewAdopted",
    "ViewChangeStarted",
    "ViewChangeVoted(ConnectionLost)",
    "ViewChangeVoted(NoProgress)",
    "ViewChangeVoted(PrimaryAsked)",
    "ViewChangeVoted(Silence)",
    "WindowClosed",
];

/// So many seeds reach everything, or something is wrong with the swarm.
pub const BATCH_MIN: u64 = 300;

/// What of all that no seed of a batch reached.
pub fn unreached(reached: &BTreeMap<String, u64>) -> Vec<&'static str> {
    EXPECTED.into_iter().filter(|event| !reached.contains_key(*event)).collect()
}
