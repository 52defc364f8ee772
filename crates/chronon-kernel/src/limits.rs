//! The bounds of everything that a kernel keeps. They are part of what the log means: every replica of a cluster must
//! run with the same ones.

use core::time::Duration;

/// Named bounds. The defaults suit production; tests and the simulator take tiny ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at most. The one that was used longest ago, in log order, goes first.
    pub sessions_max: usize,
    /// Bytes of cached replies over all sessions. Beyond it sessions go as above.
    pub sessions_bytes_max: usize,
    /// Replies cached for one session: how many requests a client may have under way.
    pub session_replies_max: usize,
    /// Bytes of replies cached for one session. The newest reply is always kept.
    pub session_reply_bytes_max: usize,
    /// Idempotency keys at most.
    pub keys_max: usize,
    /// Bytes of idempotency keys and their results.
    pub keys_bytes_max: usize,
    /// How long a key is kept, in log time.
    pub key_kept: Duration,
    /// A key younger than this is never dropped to make room: the newcomer is refused as busy.
    pub key_kept_min: Duration,
    /// Open effects over all sinks. What `settled`, `parked` and `timer` emit counts too.
    pub open_effects_max: usize,
    /// Bytes of the payloads of open effects.
    pub open_bytes_max: usize,
    /// Open effects of one lane; only commands are refused by it.
    pub lane_open_max: u32,
    /// Effects that one call of the machine may emit.
    pub emits_max: u32,
    /// Payload bytes that one call of the machine may emit.
    pub emit_bytes_max: usize,
    /// The largest reply.
    pub reply_bytes_max: u32,
    /// Timers at most; only commands are refused by it. Twice as many stop `settled`, `parked` and `timer` too.
    pub timers_max: usize,
    /// Sinks at most.
    pub sinks_max: usize,
    /// What falls due (delays, retries, deadlines, timers) is looked at this many at a time, once an op.
    pub due_per_op: usize,
    /// Outcomes, parkings and timers that the machine hears in one op, besides one for each request of the op.
    pub callbacks_per_op: usize,
    /// Settled effects that are remembered.
    pub history_max: usize,
    /// Bytes of payloads and outcomes of settled effects that are remembered.
    pub history_bytes_max: usize,
    /// Attempts that are remembered of one effect: the first one and the newest ones.
    pub attempts_kept: usize,
    /// Desk acts that are remembered, over all effects; and skips.
    pub acts_max: usize,
    /// How far two clocks may be apart: what the margins of windows and `settle` allow for, the gate's age included.
    pub clock_bound: Duration,
}

impl Limits {
    /// What production runs with.
    pub const DEFAULT: Limits = Limits {
        sessions_max: 65_536,
        sessions_bytes_max: 512 * 1024 * 1024,
        session_replies_max: 1_024,
        session_reply_bytes_max: 2 * 1024 * 1024,
        keys_max: 1_000_000,
        keys_bytes_max: 1024 * 1024 * 1024,
        key_kept: Duration::from_secs(24 * 3_600),
        key_kept_min: Duration::from_secs(3_600),
        open_effects_max: 1_000_000,
        open_bytes_max: 1024 * 1024 * 1024,
        lane_open_max: 100_000,
        emits_max: 64,
        emit_bytes_max: 1024 * 1024,
        reply_bytes_max: 1024 * 1024,
        timers_max: 1_000_000,
        sinks_max: 1_024,
        due_per_op: 256,
        callbacks_per_op: 256,
        history_max: 10_000,
        history_bytes_max: 64 * 1024 * 1024,
        attempts_kept: 16,
        acts_max: 10_000,
        clock_bound: Duration::from_millis(1_500),
    };
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::DEFAULT
    }
}
