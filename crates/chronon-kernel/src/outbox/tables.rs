//! The outbox in a checkpoint: its tables are written, its indexes are made again from them.

use core::ops::ControlFlow;
use std::sync::Arc;

use chronon_vsr::Mutation;

use super::books::{Lane, LaneKey, lane_key};
use super::{Callback, Outbox, Past, Place, Sink};
use crate::chunk::{ChunkReader, ChunkWriter, Groups, RestoreError};
use crate::effect::{Effect, Phase};
use crate::frozen::Head;
use crate::stored::encoding;
use crate::view::ActView;
use crate::{EffectId, EngineOptions, SinkName};

/// Which chunks the outbox was written as.
#[derive(Debug)]
pub(crate) struct OutboxWritten {
    sinks: Groups<SinkName>,
    lanes: Groups<LaneKey>,
    effects: Groups<EffectId>,
    callbacks: Groups<u64>,
    past: Groups<EffectId>,
    acts: Groups<u64>,
}

const EFFECTS: &str = "effects";

impl Outbox {
    /// The newest number that was given to a turn, a place in a lane, an order or a callback.
    pub(crate) fn sequence(&self) -> u64 {
        self.books.sequence
    }

    /// How many desk acts there ever were.
    pub(crate) fn acts_count(&self) -> u64 {
        self.acts_count
    }

    /// Writes the tables.
    pub(crate) fn write(
        &self,
        before: Option<(&Outbox, &OutboxWritten)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), OutboxWritten> {
        let Outbox { effects, books, past, acts, .. } = self;
        let sinks = before.map(|(old, written)| (&old.books.sinks, &written.sinks));
        let lanes = before.map(|(old, written)| (&old.books.lanes, &written.lanes));
        let open = before.map(|(old, written)| (&old.effects, &written.effects));
        let callbacks = before.map(|(old, written)| (&old.books.callbacks, &written.callbacks));
        let settled = before.map(|(old, written)| (&old.past, &written.past));
        let old_acts = before.map(|(old, written)| (&old.acts, &written.acts));
        ControlFlow::Continue(OutboxWritten {
            sinks: chunks.table(&books.sinks, sinks, &encoding())?,
            lanes: chunks.table(&books.lanes, lanes, &encoding())?,
            effects: chunks.table(effects, open, &encoding())?,
            callbacks: chunks.table(&books.callbacks, callbacks, &encoding())?,
            past: chunks.table(past, settled, &encoding())?,
            acts: chunks.table(acts, old_acts, &encoding())?,
        })
    }

    /// Reads what [`Outbox::write`] wrote.
    pub(crate) fn read(
        options: EngineOptions,
        head: &Head,
        chunks: &mut ChunkReader<'_>,
    ) -> Result<Outbox, RestoreError> {
        let mut outbox = Outbox::new(options.lineage, options.limits, options.mutations);
        outbox.acts_count = head.acts;
        let books = &mut outbox.books;
        books.place = Place { op: head.op, now: head.now, born: head.born, reign: head.reign };
        books.sequence = head.sequence;
        books.status.emitted = head.emitted;
        books.status.delivered = head.delivered;
        books.status.failed = head.failed;
        books.status.unknown = head.unknown;
        books.status.cancelled = head.cancelled;
        books.sinks = chunks.table::<SinkName, Sink>("sinks", &encoding())?;
        books.lanes = chunks.table::<LaneKey, Lane>("lanes", &encoding())?;
        outbox.effects = chunks.table::<EffectId, Arc<Effect>>(EFFECTS, &encoding())?;
        outbox.books.callbacks = chunks.table::<u64, Callback>("callbacks", &encoding())?;
        outbox.past = chunks.table::<EffectId, Arc<Past>>("settled effects", &encoding())?;
        outbox.acts = chunks.table::<u64, ActView>("desk acts", &encoding())?;
        outbox.index_effects()?;
        outbox.index_past(head)?;
        if options.mutations.breaks(Mutation::ForgetOutboxInCheckpoint) {
            outbox.forget();
        }
        let newest = |table, key: Option<&u64>, newest| match key {
            Some(key) if newest < *key => {
                Err(RestoreError::Inconsistent { table, what: "a number was never given" })
            }
            Some(_) | None => Ok(()),
        };
        newest("callbacks", outbox.books.callbacks.get_max().map(|(key, _)| key), head.sequence)?;
        newest("desk acts", outbox.acts.get_max().map(|(key, _)| key), head.acts)?;
        Ok(outbox)
    }

    fn index_effects(&mut self) -> Result<(), RestoreError> {
        let inconsistent = |what| RestoreError::Inconsistent { table: EFFECTS, what };
        let books = &mut self.books;
        for (id, effect) in &self.effects {
            if effect.id != *id || books.place.op < id.op() || books.place.reign < effect.reign {
                return Err(inconsistent("an effect is of another place in the log"));
            }
            let sink = books.sinks.get_mut(&effect.sink);
            sink.ok_or_else(|| inconsistent("an open effect's sink is missing"))?.open += 1;
            if let Some(key) = lane_key(effect) {
                let lane = books.lanes.get_mut(&key);
                lane.ok_or_else(|| inconsistent("an open effect's lane is missing"))?.open += 1;
            }
            let sound = match effect.phase {
                Phase::Queued => effect.lane.is_some() && effect.joined.is_some(),
                Phase::Claimed(_) => effect.claim.is_some() && effect.due.is_none(),
                Phase::Parked(_) => effect.due.is_none(),
                Phase::Scheduled(_) | Phase::Runnable(_) | Phase::Released(_) | Phase::Waiting(_) => true,
            };
            if !sound {
                return Err(inconsistent("an effect's phase does not fit the rest of it"));
            }
            books.index_phase(effect);
            if let Some(due) = effect.due {
                books.due.insert((due, *id));
            }
            self.bytes += effect.payload.len();
        }
        // Who waits for a place already waited when there was none.
        books.dirty.clear();
        let queued: usize = books.lanes.values().map(|lane| lane.queue.len()).sum();
        let runnable: usize = books.sinks.values().map(|sink| sink.runnable.len()).sum();
        let status = &books.status;
        if books.orders.len() as u64 != status.started || (queued + runnable) as u64 != status.ready {
            return Err(inconsistent("two effects have the same turn"));
        }
        let turns = books.sinks.values().filter_map(|sink| sink.runnable.get_max());
        let places = books.lanes.values().filter_map(|lane| lane.queue.get_max());
        let newest = turns.chain(places).chain(books.orders.get_max()).map(|(sequence, _)| *sequence).max();
        if newest.is_some_and(|newest| books.sequence < newest) {
            return Err(inconsistent("a turn was never given"));
        }
        for (key, lane) in &books.lanes {
            let holder = lane.holder.map(|id| self.effects.get(&id));
            let holds = |effect: &Arc<Effect>| lane_key(effect).as_ref() == Some(key);
            if lane.open == 0 || holder.is_some_and(|holder| !holder.is_some_and(holds)) {
                return Err(RestoreError::Inconsistent { table: "lanes", what: "nobody is in a lane" });
            }
        }
        Ok(())
    }

    fn index_past(&mut self, head: &Head) -> Result<(), RestoreError> {
        for (id, past) in &self.past {
            let same = self.past_order.insert(past.sequence, *id);
            if past.effect.id != *id || same.is_some() || head.sequence < past.sequence {
                let what = "a settled effect does not go together with the others";
                return Err(RestoreError::Inconsistent { table: "settled effects", what });
            }
            self.past_bytes += past.size();
        }
        Ok(())
    }
}
