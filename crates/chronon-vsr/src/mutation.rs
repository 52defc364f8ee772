//! Run-time switches that each break one guard. Tests turn one on and must see a checker fail: a guard that no test
//! misses is no guard. Without the feature `mutations` every switch is off and compiles to nothing.

macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One broken guard. The names are the rows of §12.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Mutation {
            $($(#[$doc])* $name,)*
        }

        impl Mutation {
            /// Every guard that can be broken, with its name.
            pub const ALL: &[(Mutation, &str)] = &[$((Mutation::$name, stringify!($name)),)*];
        }
    };
}

mutations! {
    /// The WAL reports a group durable before its flush.
    AckBeforeFlush,
    /// A faulty entry counts as a nack.
    FaultyCountsAsNack,
    /// A new primary chooses the log by the sender's view, not by its log_stamp.
    LogChosenByView,
    /// A new primary chooses the longest log.
    LogChosenByLength,
    /// A read is answered without a read round.
    ReadWithoutRound,
    /// An ack counts for whatever entry is at its op.
    AckByBareOp,
    /// DoViewChange leaves before its stamp is durable.
    DoViewChangeBeforePersist,
    /// A new primary reads and starts effects before its view's first commit point.
    ServeBeforeFirstCommit,
    /// An effect that must be claimed starts before its claim is committed.
    StartBeforeCommit,
    /// A claimed at-most-once effect is started again after a fail-over.
    RerunClaimed,
    /// An effect may settle a second time.
    SettleTwice,
    /// The outbox is missing after a restart.
    ForgetOutbox,
    /// Every attempt of an effect draws a new key.
    NewKeyPerAttempt,
    /// An idle primary calls its head committed without a quorum.
    IdleHeartbeatCommits,
    /// A vote of an old stamp leaves after the replica moved on.
    AckAfterLeaving,
    /// A late StartView of the same stamp shortens the log.
    StartViewShortensLog,
    /// A group with bad units is cut as if it were torn.
    BadUnitsCutAsTorn,
    /// Groups are reported durable in the order in which their writes end.
    DurableOutOfOrder,
    /// What start-up read is acked without being flushed again.
    AckWhatWasOnlyRead,
    /// WAL entries that the suffix excludes come back to life at start-up.
    KeepExcludedEntries,
    /// A scan that was incomplete still nacks.
    NackAfterIncompleteScan,
    /// A committed op is executed by number, without the chain.
    ExecuteWithoutChain,
    /// StartView waits for execution.
    StartViewWaitsForExecution,
    /// A request is refused from the session table before it is ordered.
    RefuseFromStaleSessions,
    /// A truncated request is reported as not executed.
    NotExecutedAfterTruncation,
    /// A negative outcome of an old stamp counts.
    NegativeOutcomeFromOldStamp,
    /// The ring lets go of what the replica's own checkpoint does not cover.
    RecycleWithoutOwnCheckpoint,
    /// The ring lets go of what only the replica's own checkpoint covers.
    RecycleWithoutCommitRule,
    /// A checkpoint that is due while another is being written is left out.
    SkipDueCheckpoint,
    /// A replica acks while it fetches a state.
    AckWhileSyncing,
    /// The superblock names a checkpoint before its chunks are here.
    SuperblockBeforeChunks,
    /// The session table is missing after a restart.
    ForgetSessions,
    /// The session table is missing in what a checkpoint restores.
    ForgetSessionsInCheckpoint,
    /// The outbox is missing in what a checkpoint restores.
    ForgetOutboxInCheckpoint,
    /// A primary commits with one vote less than Qr.
    CommitWithoutQuorum,
    /// A primary counts its own vote before its own entry is durable.
    OwnVoteBeforeFlush,
    /// A primary gives log time by its own wall clock alone.
    LogTimeFromOneClock,
    /// A primary never sends again what was not acked, nor hands over for it.
    NeverResend,
    /// A backup takes what an older stamp's primary says.
    OldPrimaryStillHeard,
    /// A backup answers a read from what it knows itself.
    BackupReadsAlone,
    /// A read round counts for the gate as soon as it is opened.
    GateWithoutRound,
    /// All copies of the superblock are written before the first flush.
    SuperblockInOneWrite,
    /// A request is applied each time that it is ordered.
    ApplyRepeats,
    /// A claim of an earlier primary is started as if it were one's own.
    StartOthersClaim,
    /// A probe's "no" counts before `settle` has passed.
    ProbeFirmAtOnce,
    /// A probe's "no" counts once log time has passed `settle`, though the clock of the primary that asks has not.
    ProbeFirmByLogTime,
    /// A call of unknown end is made again by the primary's own clock, though its sink may have forgotten the key.
    RepeatWithoutClocks,
    /// A call of unknown end counts as one that never reached the sink.
    AmbiguousIsDefinite,
    /// A sink's firm no speaks for every call before it, one of unknown end too.
    FirmNoSpeaksForAll,
    /// The effects of a lane do not wait for one another.
    LaneOvertakes,
    /// A call that never reached its sink counts as one of unknown end.
    DefiniteIsAmbiguous,
    /// A sink's window never ends.
    WindowForgotten,
    /// A timer rings twice.
    TimerRingsTwice,
    /// Front takes requests in without a bound.
    QueueUnbounded,
    /// A commit waits a while for the slowest voter.
    CommitWaitsForSlowest,
    /// A quarantined replica goes on answering.
    QuarantinedAnswers,
    /// Nobody judges by the digests that a primary hears.
    DivergenceUnjudged,
    /// Effects of a frozen sink start.
    FrozenStarts,
    /// An effect has no deadline, whatever was asked.
    DeadlineIgnored,
    /// A delayed effect is due at once.
    DelayIgnored,
    /// A machine may cancel an effect though an attempt may have started.
    MachineCancelsStarted,
    /// A person may cancel an effect though an attempt may have started.
    CancelStarted,
    /// A person may have an effect in doubt tried again without proof, and without accepting a duplicate.
    DeskRetriesDoubt,
}

/// The guards that are broken in this run: none, or one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mutations {
    #[cfg(feature = "mutations")]
    broken: Option<Mutation>,
}

impl Mutations {
    /// Every guard stands.
    pub const NONE: Mutations = Mutations {
        #[cfg(feature = "mutations")]
        broken: None,
    };

    /// Breaks one guard.
    #[cfg(feature = "mutations")]
    pub const fn broken(mutation: Mutation) -> Mutations {
        Mutations { broken: Some(mutation) }
    }

    /// Whether this guard is broken.
    #[cfg(feature = "mutations")]
    pub fn breaks(self, mutation: Mutation) -> bool {
        self.broken == Some(mutation)
    }

    /// Whether this guard is broken: never, in this build.
    #[cfg(not(feature = "mutations"))]
    pub const fn breaks(self, _mutation: Mutation) -> bool {
        false
    }
}
