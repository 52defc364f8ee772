//! Who differs from the others about the state, and what follows from it (§5.5).
//!
//! Every replica keeps the digests of the ops that it executed. Voters tell theirs with acks and answers to heartbeats;
//! the primary, which hears all, judges op by op, itself included, and tells the verdict with its heartbeats. Whoever
//! is named is *quarantined*: it answers nothing, starts nothing, leads only if nobody else can, and offers no state of
//! its own. It goes on logging, acking and voting, and executes up to the next checkpoint op, so that what it holds can
//! be compared. There a peer's checkpoint takes the place of its state.
//!
//! ```text
//!   executed ──► digest ──► primary: judge ──► Commit{divergence} ──► quarantine ──► a peer's checkpoint ──► agrees: over
//! ```

use alloc::collections::{BTreeMap, BTreeSet};

use super::{Applied, Digest, Part, Replica};
use crate::{Checkpoint, Divergence, Event, Incarnation, Mutation, Op, ReplicaId, Stamp, VOTERS_MAX};

/// Of how many ops digests are kept for comparison.
const DIGESTS_MAX: usize = 4096;

/// What voters hold after one op, by their places in the configuration. None: not heard.
type Row = [Option<Digest>; VOTERS_MAX];

/// Why this replica is quarantined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quarantine {
    /// The op by which it was found out.
    pub op: Op,
    /// Its own digest after that op; none if it has not executed it in this run.
    pub own: Option<Digest>,
    /// What most voters hold; none if no digest has a majority.
    pub majority: Option<Digest>,
}

/// What is known of everybody's digests.
#[derive(Clone, Debug)]
pub(crate) struct Digests {
    rows: BTreeMap<Op, Row>,
    /// The newest op of which two digests are known.
    disputed: Option<Op>,
    /// The start of each voter that its digests are of.
    lives: [Option<Incarnation>; VOTERS_MAX],
    /// A voter was cleared by this op: what it says of earlier ones is late.
    cleared: [Op; VOTERS_MAX],
    /// The op by which each voter was found to differ, while it counts as diverged.
    marks: [Option<Op>; VOTERS_MAX],
    /// What was last found out, here or by the primary.
    found: Divergence,
    quarantine: Option<Quarantine>,
    /// The newest heartbeat whose verdict this backup has heard: its stamp and round.
    heard: Option<(Stamp, u64)>,
    /// The stamp whose primary last named this backup.
    named_in: Option<Stamp>,
    /// Since this backup is quarantined it has come to the same as its primary once.
    agrees: bool,
    /// Whose differences an event has told of.
    told: BTreeSet<ReplicaId>,
}

impl Digests {
    pub(crate) fn new() -> Digests {
        Digests {
            rows: BTreeMap::new(),
            disputed: None,
            lives: [None; VOTERS_MAX],
            cleared: [Op::ROOT; VOTERS_MAX],
            marks: [None; VOTERS_MAX],
            found: Divergence::NONE,
            quarantine: None,
            heard: None,
            named_in: None,
            agrees: false,
            told: BTreeSet::new(),
        }
    }

    /// Notes what a voter holds after an op.
    fn note(&mut self, place: usize, applied: Applied) {
        let row = self.rows.entry(applied.op).or_default();
        row[place] = Some(applied.digest);
        let differ = row.iter().flatten().any(|digest| *digest != applied.digest);
        if differ {
            self.disputed = self.disputed.max(Some(applied.op));
        }
        while DIGESTS_MAX < self.rows.len() {
            self.rows.pop_first();
        }
    }

    /// What a voter said of ops before this one counts no more.
    fn forget(&mut self, place: usize, before: Op) {
        for (_, row) in self.rows.range_mut(..before) {
            row[place] = None;
        }
    }

    fn divergence(&self) -> Divergence {
        let named = self.marks.iter().enumerate().filter(|(_, mark)| mark.is_some());
        match named.fold(0, |bits, (place, _)| bits | 1 << place) {
            0 => Divergence::NONE,
            voters => Divergence { voters, ..self.found },
        }
    }
}

/// What follows from the digests of one op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Judgement {
    /// Places of the voters that differ from more than they agree with; of both sides of a tie.
    diverged: u8,
    /// Places of the voters that agree with another one, and with more than they differ from.
    sound: u8,
    majority: Option<Digest>,
}

/// Judges by what was heard of one op while `silent` more voters are reachable and may still be heard of. Nobody is
/// judged whom they could save or bring down; on a tie, which only they could break, they are waited for.
fn judge(heard: &[Option<Digest>], silent: usize) -> Judgement {
    let count = heard.iter().flatten().count();
    let mut judgement = Judgement::default();
    for (place, digest) in heard.iter().enumerate() {
        let Some(digest) = digest else { continue };
        let agree = heard.iter().flatten().filter(|other| *other == digest).count();
        let differ = count - agree;
        if agree + silent < differ || (silent == 0 && agree == differ) {
            judgement.diverged |= 1 << place;
        } else if differ + silent < agree && 2 <= agree {
            judgement.sound |= 1 << place;
            judgement.majority = Some(*digest);
        }
    }
    judgement
}

impl Replica {
    /// Why it is quarantined, if it is: then nothing that it executed is to be told to anybody.
    pub fn quarantine(&self) -> Option<Quarantine> {
        self.digests.quarantine
    }

    /// The voters that count as diverged, as far as it knows: as primary it judges, as backup it was told.
    pub fn diverged(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let voters = self.membership.voters.iter().zip(self.digests.marks);
        voters.filter(|(_, mark)| mark.is_some()).map(|(voter, _)| voter.replica)
    }

    pub(super) fn is_quarantined(&self) -> bool {
        self.digests.quarantine.is_some()
    }

    /// Whether a replica's state may be relied on, as far as is known.
    pub(super) fn is_trusted(&self, replica: ReplicaId) -> bool {
        self.place(replica).is_none_or(|place| self.digests.marks[place].is_none())
    }

    /// Whether another voter is there that may lead in place of this one.
    pub(super) fn has_trusted_peer(&self) -> bool {
        let mut peers = self.membership.peers(self.me);
        peers.any(|peer| self.membership.is_voter(peer) && self.is_trusted(peer) && self.is_there(peer))
    }

    /// The checkpoint that peers are shown. One that a diverged replica wrote is of no use to anybody.
    pub(super) fn offered_checkpoint(&self) -> Checkpoint {
        let own = *self.log.checkpoint();
        if self.is_quarantined() { Checkpoint { root: None, ..own } } else { own }
    }

    /// What a primary's heartbeats say of everybody's state.
    pub(super) fn divergence(&self) -> Divergence {
        self.digests.divergence()
    }

    fn place(&self, replica: ReplicaId) -> Option<usize> {
        self.membership.voters.iter().position(|voter| voter.replica == replica)
    }

    /// This replica has executed an op.
    pub(super) fn note_digest(&mut self, applied: Applied) {
        if let Some(place) = self.place(self.me).filter(|_| applied.op != Op::ROOT) {
            self.digests.note(place, applied);
            self.look_at_digests(applied.op);
        }
    }

    /// The state is about to be another: what this one came to says nothing about that.
    pub(super) fn forget_digests(&mut self) {
        if let Some(own) = self.place(self.me) {
            self.digests.forget(own, Op::new(u64::MAX));
            self.digests.disputed = None;
        }
    }

    /// A view begins with this replica as its primary: what it heard of others in earlier ones may be of the past.
    pub(super) fn begin_to_judge(&mut self) {
        let own = self.place(self.me);
        for place in (0..VOTERS_MAX).filter(|place| Some(*place) != own) {
            self.digests.forget(place, Op::new(u64::MAX));
        }
        self.digests.disputed = None;
    }

    /// A voter tells what it has executed.
    pub(super) fn hear_digest(&mut self, from: ReplicaId, applied: Applied) {
        let Some(place) = self.place(from) else { return };
        let life = self.peers.incarnation(from);
        let digests = &mut self.digests;
        if digests.lives[place] != life {
            digests.lives[place] = life;
            digests.cleared[place] = Op::ROOT;
            digests.forget(place, Op::new(u64::MAX));
        }
        // What nobody can have executed yet is not kept: it would take the place of what somebody did.
        if applied.op <= digests.cleared[place] || self.commit_max.op < applied.op {
            return;
        }
        digests.note(place, applied);
        self.look_at_digests(applied.op);
        let Some((mine, theirs)) = self.own_and(place, applied.op) else { return };
        if mine == theirs {
            self.digests.told.remove(&from);
        } else if self.digests.told.insert(from) {
            self.event(Event::DigestMismatch { op: applied.op, peer: from });
        }
    }

    /// This replica's digest after an op, and that of another.
    fn own_and(&self, place: usize, op: Op) -> Option<(Digest, Digest)> {
        let row = self.digests.rows.get(&op)?;
        Some((row[self.place(self.me)?]?, row[place]?))
    }

    fn look_at_digests(&mut self, op: Op) {
        match &self.part {
            Part::Leading(_) => self.judge_digests(op),
            Part::Following(_) => self.compare_with_primary(op),
            Part::Changing(_) | Part::Recovering(_) | Part::Halted => {}
        }
    }

    /// Time passes: whoever was waited for may be gone.
    pub(super) fn judge_disputed(&mut self) {
        if let Some(op) = self.digests.disputed {
            self.judge_digests(op);
        }
    }

    fn judge_digests(&mut self, op: Op) {
        if self.options.mutations.breaks(Mutation::DivergenceUnjudged) {
            return;
        }
        let Some(row) = self.digests.rows.get(&op).copied() else { return };
        let (now, window) = (self.now.monotonic, self.options.timing.unheard_max);
        let voters = self.membership.voters.iter().map(|voter| voter.replica).zip(row);
        let is_there = |voter| voter == self.me || self.peers.is_heard(voter, now, window);
        let silent = voters.clone().filter(|(voter, digest)| digest.is_none() && is_there(*voter)).count();
        let Judgement { diverged, sound, majority } = judge(&row, silent);
        let voters: alloc::vec::Vec<_> = voters.collect();
        for (place, (replica, digest)) in voters.into_iter().enumerate() {
            let mark = &mut self.digests.marks[place];
            match *mark {
                None if diverged >> place & 1 == 1 => {
                    *mark = Some(op);
                    self.digests.found = Divergence { op, digest: majority, voters: diverged };
                    self.event(Event::Diverged { op, replica, digest, majority });
                }
                Some(found) if found <= op && sound >> place & 1 == 1 => {
                    *mark = None;
                    if replica != self.me {
                        self.digests.cleared[place] = op;
                        self.digests.forget(place, op);
                    }
                }
                None | Some(_) => {}
            }
        }
        self.follow_mark();
    }

    /// The primary of this stamp says who differs. A backup that is not named any more believes it if that primary has
    /// named it before; a new one may not have heard of it, and is believed once both have come to the same.
    pub(super) fn hear_divergence(&mut self, round: u64, divergence: Divergence) {
        let (own, stamp) = (self.place(self.me), self.stamp);
        let digests = &mut self.digests;
        if Some((stamp, round)) < digests.heard {
            return; // Overtaken on its way.
        }
        digests.heard = Some((stamp, round));
        let is_cleared = digests.agrees || digests.named_in == Some(stamp);
        for (place, mark) in digests.marks.iter_mut().enumerate() {
            if divergence.voters >> place & 1 == 1 {
                *mark = mark.or(Some(divergence.op));
                if own == Some(place) {
                    digests.named_in = Some(stamp);
                }
            } else if own != Some(place) || is_cleared {
                *mark = None;
            }
        }
        if divergence.voters != 0 {
            digests.found = divergence;
        }
        self.follow_mark();
    }

    fn compare_with_primary(&mut self, op: Op) {
        let mark = self.place(self.me).and_then(|own| self.digests.marks[own]);
        if mark.is_some_and(|found| found <= op)
            && let Some(primary) = self.place(self.membership.primary(self.stamp))
            && self.own_and(primary, op).is_some_and(|(mine, theirs)| mine == theirs)
        {
            self.digests.agrees = true;
        }
    }

    /// The quarantine begins or ends as the mark does.
    fn follow_mark(&mut self) {
        let Some(own) = self.place(self.me) else { return };
        match (self.digests.marks[own], self.digests.quarantine) {
            (Some(op), None) => {
                let digest = self.digests.rows.get(&op).and_then(|row| row[own]);
                let majority = self.digests.found.digest;
                self.digests.agrees = false;
                self.digests.quarantine = Some(Quarantine { op, own: digest, majority });
                self.event(Event::Quarantined { op, digest, majority });
                self.lose_reads();
            }
            (None, Some(Quarantine { op, .. })) => {
                self.digests.quarantine = None;
                self.event(Event::QuarantineLifted { op });
                self.resume_freeze();
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::println;
    use std::vec::Vec;

    use super::*;

    /// The rule as it is written down, once everybody who can be heard is: who differs from more than it agrees with,
    /// itself counted, is diverged; on a tie it is too.
    fn by_the_rule(heard: &[Option<Digest>], place: usize) -> bool {
        let own = heard[place];
        let agree = heard.iter().filter(|other| other.is_some() && **other == own).count();
        let differ = heard.iter().filter(|other| other.is_some() && **other != own).count();
        own.is_some() && agree <= differ
    }

    /// What a voter may be: gone, or there and not heard, or heard to hold one of so many states.
    #[derive(Clone, Copy, PartialEq)]
    enum Voter {
        Gone,
        Silent,
        Holds(u64),
    }

    /// Everything that the silent may still say: each holds one of the states, or one that nobody else holds.
    fn completions(voters: &[Voter]) -> Vec<Vec<Option<Digest>>> {
        let mut all: Vec<Vec<Option<Digest>>> = std::vec![Vec::new()];
        for (place, voter) in voters.iter().enumerate() {
            let choices: Vec<Option<Digest>> = match voter {
                Voter::Gone => std::vec![None],
                Voter::Holds(state) => std::vec![Some(Digest(*state))],
                Voter::Silent => {
                    let states = (0..voters.len() as u64).chain([100 + place as u64]);
                    states.map(|state| Some(Digest(state))).collect()
                }
            };
            all = all
                .into_iter()
                .flat_map(|begun| {
                    choices.iter().map(move |choice| begun.iter().copied().chain([*choice]).collect())
                })
                .collect();
        }
        all
    }

    fn every_set(count: usize) -> Vec<Vec<Voter>> {
        let states = (0..count as u64).map(Voter::Holds);
        let kinds: Vec<Voter> = [Voter::Gone, Voter::Silent].into_iter().chain(states).collect();
        (0..kinds.len().pow(count as u32))
            .map(|number| {
                (0..count as u32).map(|place| kinds[number / kinds.len().pow(place) % kinds.len()]).collect()
            })
            .collect()
    }

    /// Every set of one to four voters.
    #[test]
    fn nobody_is_judged_whom_a_silent_voter_could_save_and_everybody_else_by_the_rule() {
        let mut looked_at = 0;
        for count in 1..=4 {
            for voters in every_set(count) {
                let heard: Vec<Option<Digest>> = voters
                    .iter()
                    .map(|voter| match voter {
                        Voter::Gone | Voter::Silent => None,
                        Voter::Holds(state) => Some(Digest(*state)),
                    })
                    .collect();
                let silent = voters.iter().filter(|voter| **voter == Voter::Silent).count();
                let judgement = judge(&heard, silent);
                let ends = completions(&voters);
                for place in 0..count {
                    let is_heard = heard[place].is_some();
                    let diverged = judgement.diverged >> place & 1 == 1;
                    let sound = judgement.sound >> place & 1 == 1;
                    // A tie that the silent could make is none yet.
                    let always = ends.iter().all(|end| by_the_rule(end, place));
                    let tied = |end: &Vec<Option<Digest>>| {
                        let agree = end.iter().filter(|other| **other == end[place]).count();
                        2 * agree == end.iter().flatten().count()
                    };
                    let strictly = always && (silent == 0 || !ends.iter().any(tied));
                    assert_eq!(diverged, is_heard && strictly, "{heard:?}, {silent} silent, place {place}");
                    let never = !ends.iter().any(|end| by_the_rule(end, place));
                    let supported = heard.iter().filter(|other| **other == heard[place]).count();
                    assert_eq!(sound, is_heard && never && 2 <= supported, "{heard:?}, {silent} silent");
                    assert!(!sound || judgement.majority == heard[place]);
                }
                looked_at += 1;
            }
        }
        println!("{looked_at} sets of answers");
        assert_eq!(looked_at, 3 + 16 + 125 + 1_296);
    }

    #[test]
    fn a_minority_is_diverged_both_sides_of_a_tie_are_and_so_is_everybody_without_a_majority() {
        let (a, b, c) = (Some(Digest(1)), Some(Digest(2)), Some(Digest(3)));
        let judged = |heard: &[Option<Digest>], silent| {
            let Judgement { diverged, sound, majority } = judge(heard, silent);
            (diverged, sound, majority)
        };
        assert_eq!(judged(&[a, b, a], 0), (0b010, 0b101, a));
        assert_eq!(judged(&[a, b, None], 0), (0b011, 0, None));
        assert_eq!(judged(&[a, b, None], 1), (0, 0, None));
        assert_eq!(judged(&[a, b, c], 0), (0b111, 0, None));
        assert_eq!(judged(&[a, a, b, b], 0), (0b1111, 0, None));
        assert_eq!(judged(&[a, a, b, b, None], 1), (0, 0, None));
        assert_eq!(judged(&[a, a, b, b, a], 0), (0b01100, 0b10011, a));
        assert_eq!(judged(&[a], 0), (0, 0, None));
    }
}
