//! The newest reports of attempts that were executed, for dispatchers that wait to see theirs in the log. It decides
//! nothing, so it is in no checkpoint.

use std::collections::VecDeque;

use crate::view::Reported;

/// How many reports dispatchers can look back on.
const REPORTS_MAX: usize = 4_096;

#[derive(Debug, Default)]
pub(crate) struct Reports {
    newest: VecDeque<Reported>,
    /// How many there ever were, since this engine was made.
    count: u64,
}

impl Reports {
    pub(crate) fn push(&mut self, reported: Reported) {
        self.count += 1;
        self.newest.push_back(reported);
        if REPORTS_MAX < self.newest.len() {
            self.newest.pop_front();
        }
    }

    /// How many there ever were.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Those after the first `count` were not executed after all.
    pub(crate) fn take_back_to(&mut self, count: u64) {
        let left =
            self.newest.len().saturating_sub(usize::try_from(self.count - count).unwrap_or(usize::MAX));
        self.newest.truncate(left);
        self.count = count;
    }

    /// Those after the first `after`, and how many there ever were. None if they are not all remembered, and also if
    /// there never were so many: who asks has seen those of another engine.
    pub(crate) fn after(&self, after: u64) -> (u64, Option<Vec<Reported>>) {
        let missed = self.count.checked_sub(after).and_then(|missed| usize::try_from(missed).ok());
        let from = missed.and_then(|missed| self.newest.len().checked_sub(missed));
        (self.count, from.map(|from| self.newest.range(from..).copied().collect()))
    }
}
