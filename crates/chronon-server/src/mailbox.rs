//! What a thread is told: a queue that its owner sleeps on.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A queue into one thread. Its senders keep its bound: each says which, where it sends.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    inner: Mutex<Inner<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Mailbox<T> {
        Mailbox { shared: Arc::clone(&self.shared) }
    }
}

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// There is something.
    Filled,
    /// The time is up.
    TimedOut,
    /// The replica stops.
    Closed,
}

impl<T> Mailbox<T> {
    /// An empty one.
    pub(crate) fn new() -> Mailbox<T> {
        let inner = Mutex::new(Inner { items: VecDeque::new(), closed: false });
        Mailbox { shared: Arc::new(Shared { inner, filled: Condvar::new() }) }
    }

    /// Puts something in. After [`Mailbox::close`] it is dropped.
    pub(crate) fn push(&self, item: T) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        inner.items.push_back(item);
        // Only the first wakes: the owner takes everything there is.
        let wake = inner.items.len() == 1;
        drop(inner);
        if wake {
            self.shared.filled.notify_one();
        }
    }

    /// No more goes in or out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.shared.filled.notify_all();
    }

    /// Moves everything there is into `items`, waiting for it at most this long (none: as long as it takes).
    pub(crate) fn take(&self, items: &mut VecDeque<T>, patience: Option<Duration>) -> Waited {
        let mut inner = self.lock();
        if inner.items.is_empty() && !inner.closed {
            inner = match patience {
                None => self
                    .shared
                    .filled
                    .wait_while(inner, |inner| inner.items.is_empty() && !inner.closed)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(patience) if patience.is_zero() => inner,
                Some(patience) => {
                    self.shared
                        .filled
                        .wait_timeout_while(inner, patience, |inner| inner.items.is_empty() && !inner.closed)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        if inner.closed {
            return Waited::Closed;
        }
        if inner.items.is_empty() {
            return Waited::TimedOut;
        }
        items.append(&mut inner.items);
        Waited::Filled
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // Nothing is left half done in here when a thread panics.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_asleep_wakes_for_an_item_and_for_the_close() {
        let mailbox = Mailbox::new();
        let owner = mailbox.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut items = VecDeque::new();
            while owner.take(&mut items, None) == Waited::Filled {
                seen.extend(items.drain(..));
                if seen.len() == 3 {
                    owner.close();
                }
            }
            seen
        });
        for item in 1..=3 {
            mailbox.push(item);
        }
        assert_eq!(thread.join().expect("the thread ends"), [1, 2, 3]);
        mailbox.push(4);
        assert_eq!(mailbox.take(&mut VecDeque::new(), None), Waited::Closed);
    }
}
