//! Models of sinks: what the systems out there that people call are able to do, and how they misbehave.

use chronon_kernel::{Backoff, Contract, SinkSpec};
use chronon_vsr::Duration;

use crate::{SinkBehaviour, SinkKind};

/// A sink as a simulation plays it: what it can do, how it misbehaves, and the contract under which it is used. Whether
/// that contract suits it is what the simulation finds out.
#[derive(Clone, Debug)]
pub struct SinkModel {
    pub(crate) spec: SinkSpec,
    pub(crate) kind: SinkKind,
    pub(crate) behaviour: SinkBehaviour,
}

/// One in five.
const OFTEN: u32 = 200_000;

/// One in twenty.
const NOW_AND_THEN: u32 = 50_000;

impl SinkModel {
    fn new(contract: Contract, kind: SinkKind, behaviour: SinkBehaviour) -> SinkModel {
        let mut spec = SinkSpec::new("sim", "{}", contract);
        spec.timeout = Duration::from_millis(200);
        spec.backoff =
            Backoff { first: Duration::from_millis(20), max: Duration::from_secs(1), attempts_max: 0 };
        SinkModel { spec, kind, behaviour }
    }

    /// An HTTP API that recognises our key for a day: a repeat is answered like the first call. Now and then it fails
    /// before or after it acted, or its answer is lost. Used as `idempotent` with a window of a day.
    pub fn deduplicating_api() -> SinkModel {
        let window = Duration::from_secs(86_400);
        let behaviour = SinkBehaviour {
            refuse: NOW_AND_THEN,
            error_before: NOW_AND_THEN,
            error_after: NOW_AND_THEN,
            act_silent: NOW_AND_THEN,
            ..SinkBehaviour::GOOD
        };
        let contract = Contract::Idempotent { window, replays_errors: false };
        SinkModel::new(contract, SinkKind::Deduplicating { window, replays_errors: false }, behaviour)
    }

    /// It forgets keys after this long, whatever its contract says.
    pub fn forgets_keys_after(mut self, after: Duration) -> SinkModel {
        if let SinkKind::Deduplicating { window, .. } = &mut self.kind {
            *window = after;
        }
        self
    }

    /// It remembers errors too: whoever failed once under a key hears the same error for as long as keys are kept.
    pub fn replays_errors(mut self) -> SinkModel {
        if let SinkKind::Deduplicating { replays_errors, .. } = &mut self.kind {
            *replays_errors = true;
        }
        if let Contract::Idempotent { replays_errors, .. } = &mut self.spec.contract {
            *replays_errors = true;
        }
        self
    }

    /// A mail server: it sends whatever it is given, as often as it is given it, and can't be asked. Now and then the
    /// connection breaks after the mail went out. Used as `at_most_once`.
    pub fn mail_server() -> SinkModel {
        let behaviour =
            SinkBehaviour { refuse: NOW_AND_THEN, act_silent: NOW_AND_THEN, ..SinkBehaviour::GOOD };
        SinkModel::new(Contract::AtMostOnce, SinkKind::Webhook, behaviour)
    }

    /// A database that is written in one transaction with the effect's key and the fence. Now and then a transaction
    /// dies, or the answer to its COMMIT is lost. Used as `transactional`.
    pub fn database() -> SinkModel {
        let behaviour = SinkBehaviour {
            refuse: NOW_AND_THEN,
            error_before: NOW_AND_THEN,
            act_silent: OFTEN,
            die: NOW_AND_THEN,
            ..SinkBehaviour::GOOD
        };
        SinkModel::new(Contract::Transactional, SinkKind::Store, behaviour)
    }

    /// A webhook that often acts and then times out, and acts again when it is asked again. Used as `at_least_once`.
    pub fn webhook_that_times_out() -> SinkModel {
        let behaviour = SinkBehaviour {
            act_silent: OFTEN,
            late: NOW_AND_THEN,
            late_max: Duration::from_millis(800),
            ..SinkBehaviour::GOOD
        };
        SinkModel::new(Contract::AtLeastOnce, SinkKind::Webhook, behaviour)
    }

    /// An API that takes no keys and can be asked whether a call landed. Used as `probe`.
    pub fn askable_api() -> SinkModel {
        let behaviour = SinkBehaviour { error_after: NOW_AND_THEN, act_silent: OFTEN, ..SinkBehaviour::GOOD };
        SinkModel::new(Contract::Probe { settle: Duration::from_secs(4) }, SinkKind::Askable, behaviour)
    }

    /// Used under this contract instead.
    pub fn under(mut self, contract: Contract) -> SinkModel {
        self.spec.contract = contract;
        self
    }

    /// Changes how it is used: retries, concurrency, patience.
    pub fn spec(mut self, change: impl FnOnce(&mut SinkSpec)) -> SinkModel {
        change(&mut self.spec);
        self
    }

    /// Changes how it misbehaves.
    pub fn behaviour(mut self, change: impl FnOnce(&mut SinkBehaviour)) -> SinkModel {
        change(&mut self.behaviour);
        self
    }

    /// How it behaves in a seed that drew this for all sinks: the worse of both.
    pub(crate) fn worst(&self, drawn: SinkBehaviour) -> SinkBehaviour {
        let own = self.behaviour;
        SinkBehaviour {
            refuse: own.refuse.max(drawn.refuse),
            error_before: own.error_before.max(drawn.error_before),
            error_after: own.error_after.max(drawn.error_after),
            silent: own.silent.max(drawn.silent),
            act_silent: own.act_silent.max(drawn.act_silent),
            late: own.late.max(drawn.late),
            permanent: own.permanent.max(drawn.permanent),
            gateway: own.gateway.max(drawn.gateway),
            die: own.die.max(drawn.die),
            late_max: own.late_max.max(drawn.late_max),
            delay_min: own.delay_min.max(drawn.delay_min),
            delay_mean: own.delay_mean.max(drawn.delay_mean),
        }
    }
}
