//! The pace of the demo's load: it shall last as long as the kills, and it shall be dense whenever somebody is killed.
//! A fail-over is measured by the clients' silence, and a client that is silent by itself would be taken for one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Between two transfers of all clients together while somebody is killed.
const DENSE_GAP: Duration = Duration::from_millis(10);
/// What is left of a share is spread over about this time, while who was killed comes back.
const EASY_TIME: Duration = Duration::from_millis(1_500);
/// The part of the transfers, in percent, that is for the kills. The rest runs at full speed after them.
const KILLS_PERCENT: u32 = 60;
/// What a kill needs at least around it, if there are as many transfers.
const SHARE_MIN: u32 = 10;

/// Decides when a client may begin its next transfer. Each kill has a share of the transfers: one half may begin before
/// it, the other after it, so that neither side is ever without.
#[derive(Debug)]
pub(crate) struct Pace {
    transfers: u32,
    share: u32,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    begun: u32,
    /// So many may have begun by now.
    allowed: u32,
    gap: Duration,
    next: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Begin,
    WaitFor(Duration),
    WaitForChange,
    /// All have begun.
    Over,
}

impl State {
    fn turn(&mut self, now: Instant, transfers: u32) -> Turn {
        if transfers <= self.begun {
            return Turn::Over;
        }
        if self.allowed <= self.begun {
            return Turn::WaitForChange;
        }
        if now < self.next {
            return Turn::WaitFor(self.next - now);
        }
        self.begun += 1;
        // What was missed is not made up for: that would be a burst.
        self.next = now + self.gap;
        Turn::Begin
    }
}

impl Pace {
    /// `kills`: of whomever. Without any, all transfers go at full speed.
    pub(crate) fn new(transfers: u32, kills: u32) -> Pace {
        let each = |part: u64| u32::try_from(part / u64::from(kills.max(1))).unwrap_or(u32::MAX);
        let spread = each(u64::from(transfers) * u64::from(KILLS_PERCENT) / 100);
        let share = spread.max(SHARE_MIN.min(each(u64::from(transfers))));
        let allowed = if kills == 0 { transfers } else { 0 };
        let state = State { begun: 0, allowed, gap: Duration::ZERO, next: Instant::now() };
        Pace { transfers, share, state: Mutex::new(state), changed: Notify::new() }
    }

    /// How many transfers may begin before a kill.
    pub(crate) fn before(&self) -> u32 {
        self.share / 2
    }

    /// A kill is near.
    pub(crate) fn kill_is_near(&self) {
        self.open(self.before(), DENSE_GAP);
    }

    /// Somebody was killed.
    pub(crate) fn killed(&self) {
        self.open(self.share - self.before(), DENSE_GAP);
    }

    /// Service is back: what is left of the share is spread.
    pub(crate) fn ease(&self) {
        let left = self.left_of_share();
        self.open(0, EASY_TIME / left.max(1));
    }

    /// No more kills: the rest at full speed.
    pub(crate) fn free(&self) {
        self.open(self.transfers, Duration::ZERO);
    }

    /// Waits until another transfer may begin. False: all have begun.
    pub(crate) async fn turn(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            let turn = self.lock().turn(Instant::now(), self.transfers);
            match turn {
                Turn::Begin => return true,
                Turn::Over => return false,
                Turn::WaitFor(time) => tokio::select! {
                    () = tokio::time::sleep(time) => {}
                    () = changed => {}
                },
                Turn::WaitForChange => changed.await,
            }
        }
    }

    /// How many transfers may have begun by now.
    pub(crate) fn allowed(&self) -> u64 {
        u64::from(self.lock().allowed)
    }

    fn left_of_share(&self) -> u32 {
        let state = self.lock();
        state.allowed.saturating_sub(state.begun)
    }

    fn open(&self, more: u32, gap: Duration) {
        let mut state = self.lock();
        state.allowed = state.allowed.saturating_add(more).min(self.transfers);
        state.gap = gap;
        state.next = Instant::now();
        drop(state);
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kill_has_transfers_before_and_after_it_however_few_there_are() {
        for kills in 1..=30_u32 {
            for transfers in [kills * 5, kills * 10, kills * 10 + 7, kills * 400] {
                let pace = Pace::new(transfers, kills);
                assert!(2 <= pace.before() && 2 <= pace.share - pace.before(), "{transfers} of {kills}");
                assert!(u64::from(pace.share) * u64::from(kills) <= u64::from(transfers));
            }
        }
        assert_eq!(Pace::new(u32::MAX, 1).share, u32::MAX / 5 * 3);
    }

    #[test]
    fn only_what_is_open_may_begin_and_not_all_at_once() {
        let pace = Pace::new(100, 2);
        assert_eq!((pace.share, pace.before()), (30, 15));
        let turn = |after: Duration| pace.lock().turn(Instant::now() + after, 100);
        assert_eq!(turn(Duration::ZERO), Turn::WaitForChange);
        pace.kill_is_near();
        assert_eq!(turn(Duration::ZERO), Turn::Begin);
        assert!(matches!(turn(Duration::ZERO), Turn::WaitFor(time) if time <= DENSE_GAP));
        for number in 1..15 {
            assert_eq!(turn(DENSE_GAP * number * 2), Turn::Begin);
        }
        let later = Duration::from_secs(60);
        assert_eq!(turn(later), Turn::WaitForChange);
        pace.killed();
        assert_eq!(pace.left_of_share(), 15);
        pace.free();
        for _ in 15..100 {
            assert_eq!(turn(later), Turn::Begin);
        }
        assert_eq!(turn(later), Turn::Over);
    }
}
