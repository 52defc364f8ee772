//! Views: what a person or a program may see of the outbox, the sinks and the tables around them. As JSON, ids are
//! text, times are RFC 3339 in UTC, and payloads are left to [`crate::Edge`], which knows their types.

use core::str::FromStr;
use std::sync::Arc;

use chronon_vsr::{Duration, Stamp, Timestamp};
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    AttemptKind, AttemptNumber, Contract, Culprit, EffectId, EffectKey, Fence, OutcomeReport, Parked,
    RequestId, RequestResult, SinkName, SinkSpec,
};

/// Where an effect stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectState {
    /// Its first time is still to come.
    Scheduled,
    /// It waits for its turn: in its lane, or for one of its sink's places.
    Ready,
    /// It is released to the primary, which starts it (after its claim, where the contract asks for one).
    Started,
    /// An attempt ended without an answer; the next one has its time.
    Waiting,
    /// It waits for a person, or for its machine.
    Parked,
    /// It has its outcome.
    Settled,
}

impl EffectState {
    /// Every state, in the order of an effect's life.
    pub const ALL: [EffectState; 6] = [
        EffectState::Scheduled,
        EffectState::Ready,
        EffectState::Started,
        EffectState::Waiting,
        EffectState::Parked,
        EffectState::Settled,
    ];

    /// The state's name, as in JSON and in a query string.
    pub const fn as_str(self) -> &'static str {
        match self {
            EffectState::Scheduled => "scheduled",
            EffectState::Ready => "ready",
            EffectState::Started => "started",
            EffectState::Waiting => "waiting",
            EffectState::Parked => "parked",
            EffectState::Settled => "settled",
        }
    }
}

impl FromStr for EffectState {
    type Err = UnknownEffectState;

    fn from_str(text: &str) -> Result<EffectState, UnknownEffectState> {
        let found = EffectState::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| UnknownEffectState { text: text.to_owned() })
    }
}

/// The text names no state of an effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no state: use scheduled, ready, started, waiting, parked or settled")]
pub struct UnknownEffectState {
    /// What was given.
    pub text: String,
}

/// Which effects to show. The empty filter shows all: open ones, and settled ones while they are remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EffectFilter {
    /// Only those in this state.
    pub state: Option<EffectState>,
    /// Only those of this sink.
    pub sink: Option<SinkName>,
    /// Only those of this lane.
    pub lane: Option<String>,
}

/// Everything known of an effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EffectView {
    /// Its name.
    #[serde(serialize_with = "as_text")]
    pub id: EffectId,
    /// The key that goes over the wire.
    pub key: EffectKey,
    /// Its sink.
    pub sink: SinkName,
    /// Its lane, if it has a named one.
    pub lane: Option<String>,
    /// Where it stands.
    pub state: EffectState,
    /// The contract that it was emitted under. Whoever shows it has a form of their own for durations.
    #[serde(skip)]
    pub contract: Contract,
    /// When it was emitted.
    #[serde(serialize_with = "as_time")]
    pub emitted: Timestamp,
    /// When something becomes due for it, if anything does.
    #[serde(serialize_with = "as_time_option")]
    pub due: Option<Timestamp>,
    /// When it is given up, if ever.
    #[serde(serialize_with = "as_time_option")]
    pub deadline: Option<Timestamp>,
    /// How many attempts were ordered.
    pub attempts_count: u32,
    /// What is kept of the attempts: the first ones and the newest ones.
    pub attempts: Vec<AttemptView>,
    /// The newest claim, under a contract with claims.
    pub claim: Option<ClaimView>,
    /// Why it is parked, if it is.
    pub parked: Option<Parked>,
    /// Its outcome, once it is settled.
    pub outcome: Option<OutcomeView>,
    /// What people did with it, newest last.
    pub acts: Vec<ActView>,
    /// The encoded effect: see [`crate::Edge::effect_to_json`]. Empty when it is not kept any more.
    #[serde(skip)]
    pub payload: Arc<[u8]>,
}

/// One report of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttemptView {
    /// Which attempt.
    pub number: AttemptNumber,
    /// Whether it called or asked.
    pub kind: AttemptKind,
    /// The fence that it carried.
    #[serde(serialize_with = "as_text")]
    pub fence: Fence,
    /// When its end was logged.
    #[serde(serialize_with = "as_time")]
    pub logged: Timestamp,
    /// How it ended: `delivered`, `unreadable`, `definite`, `ambiguous`, `permanent`, `in_progress`, `not_found`,
    /// `claim_lost` for a claim whose primary was replaced, or `restored` for whatever became of it after a backup.
    pub ended: &'static str,
    /// Whether the report decided something, or is kept as evidence only.
    pub decisive: bool,
    /// What was seen.
    pub evidence: String,
}

/// A claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClaimView {
    /// The attempt that it is for.
    pub attempt: AttemptNumber,
    /// The stamp that it was born in, as the fence of its attempt.
    #[serde(serialize_with = "as_text")]
    pub fence: Fence,
    /// When it was logged.
    #[serde(serialize_with = "as_time")]
    pub logged: Timestamp,
}

/// An outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutcomeView {
    /// `delivered`, `failed`, `unknown` or `cancelled`.
    pub outcome: &'static str,
    /// Why, for a failed one.
    pub reason: Option<String>,
    /// When it was settled.
    #[serde(serialize_with = "as_time")]
    pub settled: Timestamp,
    /// The op that settled it.
    pub op: u64,
    /// The encoded outcome of a delivered one.
    #[serde(skip)]
    pub body: Option<Arc<[u8]>>,
}

/// What a person did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ActView {
    /// The effect.
    #[serde(serialize_with = "as_text")]
    pub effect: EffectId,
    /// The op that carried the act.
    pub op: u64,
    /// When.
    #[serde(serialize_with = "as_time")]
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// `resolve_delivered`, `resolve_failed`, `resolve_unknown`, `retry` or `cancel`.
    pub act: &'static str,
    /// Why, in the person's words.
    pub reason: String,
    /// `done`, or the refusal's words.
    pub result: String,
}

/// A call of the machine that was passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkipView {
    /// The op that would have made it.
    pub op: u64,
    /// The call.
    #[serde(rename = "call", serialize_with = "as_text")]
    pub culprit: Culprit,
    /// The request that skipped it.
    pub skipped_by: RequestId,
    /// Log time of the op that would have made it.
    #[serde(serialize_with = "as_time")]
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// Why, in the person's words.
    pub reason: String,
}

/// Everything known of a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SinkView {
    /// Its name.
    pub name: SinkName,
    /// How often it was set.
    pub revision: u64,
    /// As it is set.
    pub spec: SinkSpec,
    /// Its open effects.
    pub open: u64,
    /// Those of them that are released to the primary.
    pub started: u64,
    /// Those of them that are parked.
    pub parked: u64,
}

/// What became of the command under an Idempotency-Key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyView {
    /// When the key was used first.
    pub used: Timestamp,
    /// When it is forgotten.
    pub expires: Timestamp,
    /// What became of its command.
    pub result: RequestResult,
}

/// Counts, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EngineStatus {
    /// Open effects by state.
    pub scheduled: u64,
    /// Open effects that wait for their turn.
    pub ready: u64,
    /// Open effects that are released.
    pub started: u64,
    /// Open effects between two attempts.
    pub waiting: u64,
    /// Open effects that are parked.
    pub parked: u64,
    /// Effects ever emitted.
    pub emitted: u64,
    /// Effects settled as delivered.
    pub delivered: u64,
    /// Effects settled as failed.
    pub failed: u64,
    /// Effects settled as unknown.
    pub unknown: u64,
    /// Effects settled as cancelled.
    pub cancelled: u64,
    /// Bytes of the payloads of open effects.
    pub outbox_bytes: u64,
    /// Outcomes, parkings and timers that their machine has not heard yet.
    pub callbacks: u64,
    /// Times that `settled`, `parked` or `timer` failed and had no effect.
    pub callbacks_aborted: u64,
    /// Commands applied, repeats not counted.
    pub commands: u64,
    /// Commands aborted.
    pub aborted: u64,
    /// Op bodies that were no batch.
    pub unreadable_ops: u64,
    /// Sessions.
    pub sessions: u64,
    /// Bytes of cached replies.
    pub session_bytes: u64,
    /// Idempotency keys.
    pub keys: u64,
    /// Bytes of idempotency keys and their results.
    pub key_bytes: u64,
    /// For how many seconds of log time the oldest kept key has been kept.
    pub key_age_seconds: u64,
    /// Timers set.
    pub timers: u64,
    /// Sinks.
    pub sinks: u64,
}

/// An effect that the log has released, as a dispatcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Orders are numbered as they are given: an order that changes gets a new, higher number.
    pub sequence: u64,
    /// The effect.
    pub effect: EffectId,
    /// Its attempt.
    pub number: AttemptNumber,
    /// Whether to do it or to ask.
    pub kind: AttemptKind,
    /// What must be seen in the log before it starts.
    pub claim: ClaimState,
    /// It must not start at or after this log time.
    pub start_before: Timestamp,
}

/// What a probe asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The call that may have acted.
    pub call: AttemptNumber,
    /// How long it takes until a "no" is proof, once a primary has begun to ask.
    pub firm_after: Duration,
}

/// A report of an attempt that the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reported {
    /// The effect.
    pub effect: EffectId,
    /// The attempt.
    pub number: AttemptNumber,
    /// The stamp under which it started.
    pub stamp: Stamp,
}

impl Reported {
    /// What this report is about.
    pub fn of(report: &OutcomeReport) -> Reported {
        Reported { effect: report.effect, number: report.attempt, stamp: report.stamp() }
    }
}

/// Where an order stands with its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimState {
    /// No claim is needed.
    NotNeeded,
    /// A claim is needed and not logged.
    Needed,
    /// Claimed by the primary of this stamp.
    Claimed(Stamp),
}

fn as_text<T: core::fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

fn as_time_option<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_some(&rfc3339(*time)),
        None => serializer.serialize_none(),
    }
}

/// A log time as people read it: RFC 3339 in UTC, to the nanosecond.
pub fn rfc3339(time: Timestamp) -> String {
    let seconds = time.nanos() / 1_000_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a date, by eras of 400 years that start on 1 March (H. Hinnant, "chrono-compatible date algorithms").
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let nanos = time.nanos() % 1_000_000_000;
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_rfc_3339() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000000Z"),
        ];
        for (seconds, text) in cases {
            assert_eq!(rfc3339(Timestamp::from_nanos(seconds * 1_000_000_000)), text);
        }
        assert_eq!(rfc3339(Timestamp::from_nanos(1_000_000_007)), "1970-01-01T00:00:01.000000007Z");
    }

    #[test]
    fn every_state_is_read_back_from_its_name() {
        for state in EffectState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("{:?}", state.as_str()));
        }
        assert!("open".parse::<EffectState>().is_err());
    }
}
