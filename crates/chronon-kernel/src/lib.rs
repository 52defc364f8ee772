//! What a machine is: tables, sessions, keys, outbox, lanes, sinks, timers, and the dispatcher that decides when an
//! effect may start.
//!
//! The kernel executes committed ops, one at a time, in log order, and is a pure function of them: the same ops give
//! the same state, replies, effects and digests on every replica. It names no clock, file, thread or source of
//! randomness; log time and seeds come with the op.
#![forbid(unsafe_code)]

// So that the derive's paths hold in this crate's own tests.
#[cfg(test)]
extern crate self as chronon_kernel;

mod attempt;
mod chunk;
mod context;
mod delivery;
mod dispatcher;
mod edge;
mod effect;
mod engine;
mod frame;
mod frozen;
mod halt;
mod ids;
mod kernel;
mod keys;
mod limits;
mod machine;
mod outbox;
mod protocol;
mod quiet;
mod reports;
mod request;
mod sessions;
mod sink;
mod state;
mod stored;
mod table;
mod timers;
mod view;

pub use attempt::{Attempt, AttemptEnd, AttemptKind};
pub use chunk::{ChunkReader, ChunkWriter, Groups, Put, RestoreError};
pub use context::Context;
pub use dispatcher::{Dispatcher, DispatcherInput, DispatcherOutput};
pub use edge::{CodecError, Edge, edge};
pub use engine::{Applied, CommittedOp, Engine, EngineOptions, QueryError, engine};
pub use frame::{FRAME_HEADER_SIZE, FrameError, frame_size};
pub use frozen::Frozen;
pub use halt::{CommittedSkip, Culprit, Halted, Skip};
pub use ids::{AttemptNumber, EffectId, EffectKey, Fence, Lineage, RequestId, RequestNumber, SessionId};
pub use kernel::Kernel;
pub use limits::Limits;
pub use machine::{
    Emit, Emitted, OnPanic, OnParked, Parked, QueryContext, Refused, Settled, StateMachine, TimerKey,
};
pub use protocol::{
    Answer, CLIENT_PROTOCOL_VERSION, COMMAND_SIZE_MAX, ClientFrame, Consistency, FRAME_SIZE_MAX, NotExecuted,
    ServerFrame, Submission,
};
pub use request::{
    AbortReason, Batch, Busy, DeskAct, Ended, Evidence, Origin, OutcomeReport, Refusal, Request,
    RequestResult, SettleAs,
};
pub use sink::{Backoff, Contract, SinkName, SinkSpec};
pub use state::{Fold, State, StateField};
pub use table::{Cell, Key, Set, Table, Value};
pub use view::{
    ActView, Asked, AttemptView, ClaimState, ClaimView, EffectFilter, EffectState, EffectView, EngineStatus,
    KeyView, Order, OutcomeView, Reported, SinkView, SkipView, UnknownEffectState, rfc3339,
};
