//! Readers: a few threads that answer queries, and let others look, from frozen copies of the state. A slow query delays
//! neither an op nor anybody's look.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use chronon_kernel::{Engine, Frozen};
use chronon_node::{ToFront, Token, answer};
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::counters::Counters;
use crate::front::Look;

/// What waits for a reader. Front bounds queries and looks by who waits for an answer.
#[derive(Clone, Default)]
pub(crate) struct Reads {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    filled: Condvar,
}

#[derive(Default)]
struct Inner {
    queries: VecDeque<(Token, Vec<u8>)>,
    looks: VecDeque<Look>,
    /// As new as the newest of them asked for, and none when nothing waits. All share it: whoever waited for an older
    /// state is content with this one, and old states are kept no longer than they are read.
    view: Option<Arc<dyn Frozen>>,
    closed: bool,
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").finish_non_exhaustive()
    }
}

/// Something to read, and the state to read it from.
enum Read {
    Query { token: Token, query: Vec<u8> },
    Look(Look),
}

impl Reads {
    /// A query for whoever is free, of the state as it is now.
    pub(crate) fn query(&self, engine: &dyn Engine, token: Token, query: Vec<u8>) {
        self.put(engine, |inner| inner.queries.push_back((token, query)));
    }

    /// A look for whoever is free, at the state as it is now.
    pub(crate) fn look(&self, engine: &dyn Engine, look: Look) {
        self.put(engine, |inner| inner.looks.push_back(look));
    }

    fn put(&self, engine: &dyn Engine, put: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        let is_old = inner.view.as_ref().is_none_or(|view| view.op() != engine.applied());
        let old = if is_old { inner.view.replace(Arc::from(engine.freeze())) } else { None };
        put(&mut inner);
        drop(inner);
        drop(old);
        self.shared.filled.notify_all();
    }

    /// No more goes in or out.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.queries.clear();
        inner.looks.clear();
        inner.view = None;
        drop(inner);
        self.shared.filled.notify_all();
    }

    /// Waits for the next thing to read. None: the replica stops.
    fn take(&self, serves: Serves) -> Option<(Read, Arc<dyn Frozen>)> {
        let mut inner = self.lock();
        loop {
            if inner.closed {
                return None;
            }
            let look = inner.looks.pop_front().map(Read::Look);
            let read = look.or_else(|| match serves {
                Serves::All => inner.queries.pop_front().map(|(token, query)| Read::Query { token, query }),
                Serves::Looks => None,
            });
            if let Some(read) = read {
                let is_last = inner.queries.is_empty() && inner.looks.is_empty();
                let view = if is_last { inner.view.take() } else { inner.view.clone() };
                return Some((read, view.expect("there is a view while something waits")));
            }
            inner = self.shared.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done in here when a thread panics.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reader serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serves {
    /// Looks first, then queries.
    All,
    /// Looks alone: however slow the queries are, status and metrics are not.
    Looks,
}

/// What runs a reader's thread.
pub(crate) struct Reader {
    pub(crate) reads: Reads,
    pub(crate) serves: Serves,
    pub(crate) to_front: mpsc::Sender<ToFront>,
    pub(crate) counters: Arc<Counters>,
    /// Called before each query is answered: tests make it slow here.
    pub(crate) before_query: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Reader {
    /// Runs until the replica stops.
    pub(crate) fn run(self) {
        while let Some((read, view)) = self.reads.take(self.serves) {
            match read {
                Read::Look(look) => look(view.engine()),
                Read::Query { token, query } => {
                    if let Some(hook) = &self.before_query {
                        hook();
                    }
                    let begun = Clock.monotonic();
                    let answered = answer(view.engine(), token, &query);
                    drop(view);
                    self.counters.query.record(Clock.monotonic().since(begun));
                    // Front never waits for this thread, so waiting for Front ends.
                    if self.to_front.blocking_send(answered).is_err() {
                        return;
                    }
                }
            }
        }
    }
}
