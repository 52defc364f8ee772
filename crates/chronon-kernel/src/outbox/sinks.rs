//! Sinks, as the log sets them.

use std::sync::Arc;

use chronon_vsr::Duration;

use super::{Outbox, Sink};
use crate::{Contract, Limits, Refusal, SinkName, SinkSpec};

impl Outbox {
    pub(crate) fn has_sink(&self, name: &SinkName) -> bool {
        self.books.sinks.contains_key(name)
    }

    /// Makes, changes or removes a sink. Returns its revision; setting it as it is changes nothing.
    pub(crate) fn set_sink(
        &mut self,
        name: &SinkName,
        spec: Option<SinkSpec>,
        expected_revision: Option<u64>,
    ) -> Result<u64, Refusal> {
        let books = &mut self.books;
        let revision = books.sinks.get(name).map_or(0, |sink| sink.revision);
        if expected_revision.is_some_and(|expected| expected != revision) {
            return Err(Refusal::WrongRevision { revision });
        }
        let Some(spec) = spec else {
            match books.sinks.get(name) {
                None => return Err(Refusal::WrongRevision { revision }),
                Some(sink) if sink.open != 0 => return Err(Refusal::SinkInUse { open: sink.open }),
                Some(_) => books.sinks.remove(name),
            };
            books.fold.bytes(name.as_str().as_bytes());
            return Ok(revision);
        };
        check(&spec, &books.limits).map_err(|why| Refusal::NotAllowed { why })?;
        books.fold.bytes(name.as_str().as_bytes());
        books.fold.encoded(&spec);
        if let Some(sink) = books.sinks.get_mut(name) {
            if *sink.spec != spec {
                sink.spec = Arc::new(spec);
                sink.revision += 1;
                books.dirty.insert(name.clone());
            }
            return Ok(sink.revision);
        }
        if books.limits.sinks_max <= books.sinks.len() {
            return Err(Refusal::NotAllowed {
                why: format!("there are {} sinks already", books.sinks.len()),
            });
        }
        books.sinks.insert(name.clone(), Sink::new(Arc::new(spec), 1));
        Ok(1)
    }
}

/// How many attempts may be under way at one sink.
const CONCURRENCY_MAX: u32 = 1_024;

/// The longest time-out, window, settle time or back-off.
const DURATION_MAX: Duration = Duration::from_secs(400 * 24 * 3_600);

fn check(spec: &SinkSpec, limits: &Limits) -> Result<(), String> {
    let margin = spec.timeout.saturating_add(limits.clock_bound);
    if spec.concurrency == 0 || CONCURRENCY_MAX < spec.concurrency {
        return Err(format!("concurrency must be 1 to {CONCURRENCY_MAX}"));
    }
    let durations = [spec.timeout, spec.backoff.first, spec.backoff.max];
    if spec.timeout.is_zero() || durations.iter().any(|duration| DURATION_MAX < *duration) {
        return Err(String::from("a time-out must be more than nothing, and no time longer than 400 days"));
    }
    match spec.contract {
        Contract::Idempotent { window, .. } if window <= margin || DURATION_MAX < window => Err(format!(
            "window must be longer than time-out and clock bound, {margin:?}, and at most 400 days"
        )),
        Contract::Probe { settle } if settle <= margin || DURATION_MAX < settle => Err(format!(
            "settle must be longer than time-out and clock bound, {margin:?}, and at most 400 days"
        )),
        Contract::Idempotent { .. }
        | Contract::Probe { .. }
        | Contract::Transactional
        | Contract::AtMostOnce
        | Contract::AtLeastOnce => Ok(()),
    }
}
