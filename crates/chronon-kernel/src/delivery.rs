//! The delivery contracts: what the end of an attempt means for its effect. Pure, and small enough to be enumerated.

use crate::{AttemptKind, Contract, Ended, Parked};

/// The kinds of [`Ended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Delivered,
    Unreadable,
    Definite,
    Ambiguous,
    Permanent,
    InProgress,
    NotFound,
    NotFoundTooSoon,
}

impl End {
    pub(crate) fn of(ended: &Ended) -> End {
        match ended {
            Ended::Delivered { .. } => End::Delivered,
            Ended::Unreadable { .. } => End::Unreadable,
            Ended::Definite { .. } => End::Definite,
            Ended::Ambiguous { .. } => End::Ambiguous,
            Ended::Permanent { .. } => End::Permanent,
            Ended::InProgress { .. } => End::InProgress,
            Ended::NotFound { .. } => End::NotFound,
            Ended::NotFoundTooSoon { .. } => End::NotFoundTooSoon,
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            End::Delivered => "delivered",
            End::Unreadable => "unreadable",
            End::Definite => "definite",
            End::Ambiguous => "ambiguous",
            End::Permanent => "permanent",
            End::InProgress => "in_progress",
            End::NotFound | End::NotFoundTooSoon => "not_found",
        }
    }
}

/// What was known when the attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) contract: Contract,
    pub(crate) kind: AttemptKind,
    /// An earlier attempt may have acted.
    pub(crate) doubt: Doubt,
    /// For a probe: whether it was released late enough for its "no" to be proof.
    pub(crate) settled_down: bool,
}

/// Whether an attempt may have acted without anybody knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    None,
    Possible,
}

/// What becomes of the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Settle it as delivered.
    Deliver,
    /// Settle it as failed.
    Fail,
    /// Call again after a while. Whether this attempt itself may have acted.
    CallAgain(Doubt),
    /// Call again after a while: it is proved that nothing has acted.
    CallAgainProved,
    /// This call may have acted: ask, and believe a "no" only after `settle` from now.
    Ask,
    /// Ask again after a while.
    AskAgain,
    /// Ask again when a "no" is proof.
    AskWhenSettled,
    /// Leave it to a person, or to its machine.
    Park(Parked),
}

/// The verdict about the end of the attempt that is under way, as its own primary reports it.
pub(crate) fn judge(known: Known, end: End) -> Verdict {
    match known.kind {
        AttemptKind::Call => judge_call(known, end),
        AttemptKind::Probe => judge_probe(known, end),
    }
}

fn judge_call(known: Known, end: End) -> Verdict {
    match end {
        End::Delivered => Verdict::Deliver,
        // It was done, but what it answered is lost to the machine: another call can only do harm.
        End::Unreadable => Verdict::Park(Parked::InDoubt),
        End::Definite => Verdict::CallAgain(Doubt::None),
        End::Permanent => match known.contract {
            // The row is looked for in the very transaction that says "no"; a sink that keeps its errors under our key
            // as well says what it said the first time. So the "no" speaks for every attempt.
            Contract::Transactional | Contract::Idempotent { replays_errors: true, .. } => Verdict::Fail,
            // It speaks for this call alone: a gateway refuses before anybody has looked for our key, and a limit may be
            // reached because of the call before. Under the contracts with claims there is no call before: one follows
            // only upon proof that the last did not act.
            Contract::Idempotent { replays_errors: false, .. }
            | Contract::AtLeastOnce
            | Contract::AtMostOnce
            | Contract::Probe { .. } => match known.doubt {
                Doubt::None => Verdict::Fail,
                Doubt::Possible => Verdict::Park(Parked::InDoubt),
            },
        },
        // "Not found" answers a question that a call does not ask: nothing can be concluded. "In progress" means that
        // a call under our key may act yet.
        End::Ambiguous | End::InProgress | End::NotFound | End::NotFoundTooSoon => match known.contract {
            Contract::Transactional | Contract::Idempotent { .. } | Contract::AtLeastOnce => {
                Verdict::CallAgain(Doubt::Possible)
            }
            Contract::Probe { .. } => Verdict::Ask,
            Contract::AtMostOnce => Verdict::Park(Parked::InDoubt),
        },
    }
}

fn judge_probe(known: Known, end: End) -> Verdict {
    match end {
        End::Delivered => Verdict::Deliver,
        End::Unreadable => Verdict::Park(Parked::InDoubt),
        // The sink won't be asked; whether the call landed stays unknown.
        End::Permanent => Verdict::Park(Parked::InDoubt),
        End::NotFound if known.settled_down => Verdict::CallAgainProved,
        End::NotFound | End::NotFoundTooSoon => Verdict::AskWhenSettled,
        End::Definite | End::Ambiguous | End::InProgress => Verdict::AskAgain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    const ENDS: [End; 8] = [
        End::Delivered,
        End::Unreadable,
        End::Definite,
        End::Ambiguous,
        End::Permanent,
        End::InProgress,
        End::NotFound,
        End::NotFoundTooSoon,
    ];

    fn contracts() -> [Contract; 6] {
        let window = Duration::from_secs(60);
        [
            Contract::Transactional,
            Contract::Idempotent { window, replays_errors: true },
            Contract::Idempotent { window, replays_errors: false },
            Contract::Probe { settle: Duration::from_secs(60) },
            Contract::AtMostOnce,
            Contract::AtLeastOnce,
        ]
    }

    #[test]
    fn the_table_of_contracts_and_ends_of_a_call_is_as_documented() {
        use Verdict::{Ask, CallAgain, Deliver, Fail, Park};
        let doubt = Park(Parked::InDoubt);
        let definite = CallAgain(Doubt::None);
        let ambiguous = CallAgain(Doubt::Possible);
        // Columns as in ENDS; rows as in contracts(), first without and then with an earlier call of unknown end.
        let table = [
            [Deliver, doubt, definite, ambiguous, Fail, ambiguous, ambiguous, ambiguous],
            [Deliver, doubt, definite, ambiguous, Fail, ambiguous, ambiguous, ambiguous],
            [Deliver, doubt, definite, ambiguous, Fail, ambiguous, ambiguous, ambiguous],
            [Deliver, doubt, definite, Ask, Fail, Ask, Ask, Ask],
            [Deliver, doubt, definite, doubt, Fail, doubt, doubt, doubt],
            [Deliver, doubt, definite, ambiguous, Fail, ambiguous, ambiguous, ambiguous],
            [Deliver, doubt, definite, ambiguous, Fail, ambiguous, ambiguous, ambiguous],
            [Deliver, doubt, definite, ambiguous, Fail, ambiguous, ambiguous, ambiguous],
            [Deliver, doubt, definite, ambiguous, doubt, ambiguous, ambiguous, ambiguous],
            [Deliver, doubt, definite, Ask, doubt, Ask, Ask, Ask],
            [Deliver, doubt, definite, doubt, doubt, doubt, doubt, doubt],
            [Deliver, doubt, definite, ambiguous, doubt, ambiguous, ambiguous, ambiguous],
        ];
        let rows =
            [Doubt::None, Doubt::Possible].into_iter().flat_map(|doubt| contracts().map(|it| (it, doubt)));
        for ((contract, doubt), row) in rows.zip(table) {
            for (end, expected) in ENDS.into_iter().zip(row) {
                for settled_down in [false, true] {
                    let known = Known { contract, kind: AttemptKind::Call, doubt, settled_down };
                    assert_eq!(judge(known, end), expected, "{known:?} {end:?}");
                }
            }
        }
    }

    #[test]
    fn a_probe_allows_another_call_only_on_a_firm_no() {
        for contract in contracts() {
            for doubt in [Doubt::None, Doubt::Possible] {
                for settled_down in [false, true] {
                    for end in ENDS {
                        let verdict =
                            judge(Known { contract, kind: AttemptKind::Probe, doubt, settled_down }, end);
                        let calls = matches!(verdict, Verdict::CallAgain(_) | Verdict::CallAgainProved);
                        assert_eq!(calls, end == End::NotFound && settled_down);
                        assert_eq!(verdict == Verdict::Deliver, end == End::Delivered);
                        assert_ne!(verdict, Verdict::Fail);
                    }
                }
            }
        }
    }
}
