//! The request numbers of one session.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chronon_kernel::{Origin, RequestNumber, SessionId};
use tokio::sync::Notify;

/// A session as its client keeps it.
#[derive(Debug)]
pub(crate) struct Session {
    id: SessionId,
    window: u64,
    state: Mutex<Numbers>,
    freed: Notify,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    held: BTreeSet<u64>,
}

/// A request number, held until nobody asks about it any more.
///
/// The cluster keeps the replies of a session's newest requests only. As long as a number is held no number beyond the
/// window after it is drawn, so what is kept always covers what may still be asked.
#[derive(Debug)]
pub(crate) struct Held {
    session: Arc<Session>,
    number: u64,
}

impl Session {
    pub(crate) fn new(id: SessionId, window: u64) -> Arc<Session> {
        assert!(0 < window);
        let state = Mutex::new(Numbers { next: 1, held: BTreeSet::new() });
        Arc::new(Session { id, window, state, freed: Notify::new() })
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next number, as soon as the window has room.
    pub(crate) async fn draw(self: &Arc<Self>) -> Held {
        loop {
            let freed = self.freed.notified();
            if let Some(number) = self.try_draw() {
                // The room may be for more than one.
                self.freed.notify_one();
                return Held { session: self.clone(), number };
            }
            freed.await;
        }
    }

    fn try_draw(&self) -> Option<u64> {
        let mut numbers = self.numbers();
        let oldest = numbers.held.first().copied().unwrap_or(numbers.next);
        if self.window <= numbers.next - oldest {
            return None;
        }
        let number = numbers.next;
        numbers.next += 1;
        numbers.held.insert(number);
        Some(number)
    }
}

impl Held {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin::Session { session: self.session.id, number: RequestNumber(self.number) }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.session.numbers().held.remove(&self.number);
        self.session.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronon_kernel::RequestId;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[tokio::test]
    async fn no_number_is_drawn_beyond_the_window_after_the_oldest_that_is_held() {
        let session = Session::new(SessionId(RequestId { op: 1, request: 0 }), 3);
        let first = session.draw().await;
        let second = session.draw().await;
        let third = session.draw().await;
        assert_eq!([first.number(), second.number(), third.number()], [1, 2, 3]);
        drop(second);
        let mut fourth = pin!(session.draw());
        assert!(fourth.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(first);
        assert_eq!(fourth.await.number(), 4);
        drop(third);
    }
}
