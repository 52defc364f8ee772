//! A state that stays as it was: what checkpoints are written from, and what queries are answered from.

use core::any::Any;
use core::ops::ControlFlow;

use chronon_vsr::{Digest, Mutation, Op, Stamp, Timestamp};

use crate::chunk::{ChunkReader, ChunkWriter, Groups, Put, RestoreError};
use crate::halt::Skips;
use crate::kernel::{Counters, Kernel, Passage};
use crate::keys::{self, Keys};
use crate::outbox::{Outbox, OutboxWritten, Place};
use crate::sessions::Sessions;
use crate::state::Fold;
use crate::stored::Stored;
use crate::timers::Timers;
use crate::{Engine, EngineOptions, SessionId, StateMachine, TimerKey};

/// An engine's whole state at one op. The engine goes on; this stays.
pub trait Frozen: Send + Sync {
    /// The newest op that it reflects.
    fn op(&self) -> Op;

    /// The chained digest after that op.
    fn digest(&self) -> Digest;

    /// Log time of that op.
    fn timestamp(&self) -> Timestamp;

    /// Writes the state as chunks, in order. Where chunks end follows from the state alone, so every replica gives the
    /// same ones, whatever its history. With `before`, an earlier state of the same engine that was written to its end,
    /// it takes time in proportion to what changed since. `put` breaks to stop.
    fn write(
        &mut self,
        before: Option<&dyn Frozen>,
        put: &mut dyn FnMut(Put<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()>;

    /// The state, to query and look at, on any thread.
    fn engine(&self) -> &dyn Engine;

    /// For [`Frozen::write`], which knows the type.
    fn as_any(&self) -> &dyn Any;
}

/// A kernel that executes nothing more.
pub(crate) struct FrozenKernel<M: StateMachine> {
    kernel: Kernel<M>,
    written: Option<Written<M>>,
}

/// Which chunks a kernel was written as.
struct Written<M: StateMachine> {
    outbox: OutboxWritten,
    sessions: Groups<SessionId>,
    keys: Groups<keys::Name>,
    timers: Groups<TimerKey>,
    machine: M::Written,
    skips: Groups<u64>,
}

/// The first table of a checkpoint: everything that is in no table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) tables: Vec<String>,
    pub(crate) machine_version: u32,
    pub(crate) op: Op,
    pub(crate) digest: Digest,
    pub(crate) now: Timestamp,
    pub(crate) born: Option<Stamp>,
    pub(crate) reign: u32,
    pub(crate) sequence: u64,
    pub(crate) acts: u64,
    pub(crate) session_uses: u64,
    pub(crate) key_sequence: u64,
    pub(crate) blocked: Option<usize>,
    pub(crate) commands: u64,
    pub(crate) aborted: u64,
    pub(crate) unreadable_ops: u64,
    pub(crate) callbacks_aborted: u64,
    pub(crate) emitted: u64,
    pub(crate) delivered: u64,
    pub(crate) failed: u64,
    pub(crate) unknown: u64,
    pub(crate) cancelled: u64,
}

impl<M: StateMachine> FrozenKernel<M> {
    pub(crate) fn new(kernel: Kernel<M>) -> FrozenKernel<M> {
        FrozenKernel { kernel, written: None }
    }

    fn write_tables(
        &self,
        before: Option<&FrozenKernel<M>>,
        put: &mut dyn FnMut(Put<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<(), Written<M>> {
        let kernel = &self.kernel;
        let before = before.and_then(|before| Some((&before.kernel, before.written.as_ref()?)));
        let mut chunks = ChunkWriter::new(put);
        chunks.value(|bytes| kernel.head().put(bytes))?;
        let outbox = before.map(|(kernel, written)| (&kernel.outbox, &written.outbox));
        let sessions = before.map(|(kernel, written)| (&kernel.sessions, &written.sessions));
        let keys = before.map(|(kernel, written)| (&kernel.keys, &written.keys));
        let timers = before.map(|(kernel, written)| (&kernel.timers, &written.timers));
        let skips = before.map(|(kernel, written)| (&kernel.skips, &written.skips));
        let machine = before.map(|(kernel, written)| (&kernel.machine, &written.machine));
        let written = Written {
            outbox: kernel.outbox.write(outbox, &mut chunks)?,
            sessions: kernel.sessions.write(sessions, &mut chunks)?,
            keys: kernel.keys.write(keys, &mut chunks)?,
            timers: kernel.timers.write(timers, &mut chunks)?,
            machine: kernel.machine.write(machine, &mut chunks)?,
            skips: kernel.skips.write(skips, &mut chunks)?,
        };
        chunks.finish()?;
        ControlFlow::Continue(written)
    }
}

impl<M: StateMachine> Frozen for FrozenKernel<M> {
    fn op(&self) -> Op {
        self.kernel.applied()
    }

    fn digest(&self) -> Digest {
        self.kernel.digest
    }

    fn timestamp(&self) -> Timestamp {
        self.kernel.outbox.place().now
    }

    fn write(
        &mut self,
        before: Option<&dyn Frozen>,
        put: &mut dyn FnMut(Put<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let before = before.and_then(|before| before.as_any().downcast_ref::<FrozenKernel<M>>());
        self.written = Some(self.write_tables(before, put)?);
        ControlFlow::Continue(())
    }

    fn engine(&self) -> &dyn Engine {
        &self.kernel
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl<M: StateMachine> Kernel<M> {
    fn head(&self) -> Head {
        let Place { op, now, born, reign } = self.outbox.place();
        let status = self.outbox.status();
        let Counters { commands, aborted, unreadable_ops, callbacks_aborted } = self.counters;
        assert!(op == self.applied);
        Head {
            tables: M::TABLES.iter().map(|name| String::from(*name)).collect(),
            machine_version: M::VERSION,
            op,
            digest: self.digest,
            now,
            born,
            reign,
            sequence: self.outbox.sequence(),
            acts: self.outbox.acts_count(),
            session_uses: self.sessions.uses(),
            key_sequence: self.keys.sequence(),
            blocked: self.blocked,
            commands,
            aborted,
            unreadable_ops,
            callbacks_aborted,
            emitted: status.emitted,
            delivered: status.delivered,
            failed: status.failed,
            unknown: status.unknown,
            cancelled: status.cancelled,
        }
    }

    /// A kernel with the state that these chunks hold.
    pub(crate) fn from_chunks(
        options: EngineOptions,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<Kernel<M>, RestoreError> {
        let mut chunks = ChunkReader::new(chunks);
        let head: Head = chunks.value("head", Head::put, Head::take)?;
        if head.machine_version != M::VERSION {
            let (found, own) = (head.machine_version, M::VERSION);
            return Err(RestoreError::OtherMachineVersion { found, own });
        }
        if head.tables != M::TABLES {
            let own = M::TABLES.iter().map(|name| String::from(*name)).collect();
            return Err(RestoreError::OtherTables { found: head.tables, own });
        }
        let outbox = Outbox::read(options, &head, &mut chunks)?;
        let mut sessions = Sessions::read(head.session_uses, &mut chunks)?;
        let mut keys = Keys::read(head.key_sequence, &mut chunks)?;
        if options.mutations.breaks(Mutation::ForgetSessionsInCheckpoint) {
            sessions.forget();
            keys.forget();
        }
        let timers = Timers::read(&mut chunks)?;
        let machine = M::read(&mut chunks)?;
        let skips = Skips::read(&mut chunks)?;
        chunks.finish()?;
        Ok(Kernel {
            machine,
            outbox,
            timers,
            sessions,
            keys,
            skips,
            passage: Passage::default(),
            reports: crate::reports::Reports::default(),
            limits: options.limits,
            mutations: options.mutations,
            applied: head.op,
            digest: head.digest,
            fold: Fold::EMPTY,
            emitted: 0,
            calls: 0,
            blocked: head.blocked,
            counters: Counters {
                commands: head.commands,
                aborted: head.aborted,
                unreadable_ops: head.unreadable_ops,
                callbacks_aborted: head.callbacks_aborted,
            },
        })
    }
}
