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

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{Applied, Digest, Part, Replica};
use crate::{
    Checkpoint, Divergence, Duration, Event, Incarnation, Instant, Mutation, Op, ReplicaId, Stamp, VOTERS_MAX,
};

/// Of how many ops digests are kept for comparison.
const DIGESTS_MAX: usize = 4096;

/// How long no checkpoint is named while another voter's digest differs. A verdict takes less, unless a voter that is
/// reachable never says what it holds; then the log must not fill up for its sake.
const DISPUTE_MAX: Duration = Duration::from_secs(5);

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
    /// Who came to something else than this replica when that could last be compared, and after which op: told once by
    /// an event.
    differing: BTreeMap<ReplicaId, Op>,
    /// When the last of them was added.
    differing_since: Instant,
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
            differing: BTreeMap::new(),
            differing_since: Instant::ZERO,
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

    /// Who counts as diverged, by places.
    fn marked(&self) -> u8 {
        bits(self.marks.iter().map(Option::is_some))
    }

    fn divergence(&self) -> Divergence {
        match self.marked() {
            0 => Divergence::NONE,
            voters => Divergence { voters, ..self.found },
        }
    }
}

/// What is known of an op when it is judged. Sets of voters are bits, by their places.
#[derive(Clone, Copy, Debug)]
struct Heard<'a> {
    digests: &'a [Option<Digest>],
    /// Reachable, and not heard of this op yet.
    silent: u8,
    /// They count as diverged already.
    marked: u8,
}

/// What follows from the digests of one op.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Judgement {
    /// Who is to be marked.
    diverged: u8,
    /// Who holds what more than half of all voters hold, or agrees with another one and with more than it differs from.
    sound: u8,
    majority: Option<Digest>,
}

/// How the voters that count stand to one of them.
struct Count {
    /// Itself among them.
    agree: usize,
    differ: usize,
    silent: usize,
}

impl Heard<'_> {
    /// Those of whom something was heard, and of whom this holds.
    fn those(&self, holds: impl Fn(usize, Digest) -> bool) -> u8 {
        let known = self.digests.iter().enumerate();
        bits(known.map(|(place, digest)| digest.is_some_and(|digest| holds(place, digest))))
    }

    fn holders(&self, digest: Digest) -> u8 {
        self.those(|_, other| other == digest)
    }

    fn is_most(&self, voters: u8) -> bool {
        self.digests.len() < 2 * size(voters)
    }

    /// Everybody is judged by itself and by those who are not marked. What the marked have wrong brings nobody down, and
    /// what they may still say is not waited for.
    fn count(&self, place: usize, digest: Digest) -> Count {
        let holders = self.holders(digest);
        let agree = (holders & !self.marked) | 1 << place;
        let differ = self.those(|_, other| other != digest) & !self.marked;
        Count { agree: size(agree), differ: size(differ), silent: size(self.silent & !self.marked) }
    }

    /// What more than half of all voters hold is right, whoever they are.
    fn is_sound(&self, place: usize, digest: Digest) -> bool {
        let Count { agree, differ, silent } = self.count(place, digest);
        self.is_most(self.holders(digest)) || (2 <= agree && differ + silent < agree)
    }

    fn is_diverged(&self, place: usize, digest: Digest) -> bool {
        let Count { agree, differ, silent } = self.count(place, digest);
        let holders = self.holders(digest);
        // Those who were marked by a tie may both be wrong, or none of them: whom all of them contradict is not
        // believed alone.
        let is_alone = size(holders) == 1 && self.is_most(self.those(|_, other| other != digest));
        let is_outvoted = agree + silent < differ || (silent == 0 && (agree == differ || is_alone));
        is_outvoted && !self.is_most(holders)
    }
}

fn size(voters: u8) -> usize {
    voters.count_ones() as usize
}

/// The places of those of whom something holds.
fn bits(holds: impl Iterator<Item = bool>) -> u8 {
    holds.enumerate().fold(0, |bits, (place, holds)| bits | u8::from(holds) << place)
}

/// Judges by what was heard of one op. Nobody is judged whom those could save or bring down that are waited for; on a tie,
/// which only they could break, they are waited for too. Who is cleared counts again when the others are judged.
fn judge(heard: Heard<'_>) -> Judgement {
    let cleared = heard.those(|place, digest| heard.is_sound(place, digest));
    let now = Heard { marked: heard.marked & !cleared, ..heard };
    let diverged = now.those(|place, digest| now.is_diverged(place, digest)) & !heard.marked;
    let sound = now.those(|place, digest| now.is_sound(place, digest)) & !now.marked;
    let majority = (0..heard.digests.len()).find(|place| sound >> place & 1 == 1);
    Judgement { diverged, sound, majority: majority.and_then(|place| heard.digests[place]) }
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

    /// Whether it may be wrong itself: somebody who is not known to differ has come to something else, and nobody has
    /// said yet which of them did. What is frozen meanwhile is named once that is settled: executing again from the
    /// checkpoint before it brings whoever slipped back, from one of the wrong state nothing does.
    pub(super) fn is_disputed(&self) -> bool {
        let digests = &self.digests;
        digests.differing.keys().any(|peer| self.is_trusted(*peer))
            && self.now.monotonic < digests.differing_since + DISPUTE_MAX
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
            for other in (0..self.membership.voters.len()).filter(|other| *other != place) {
                self.compare(other, applied.op);
            }
            self.look_at_digests(applied.op);
        }
    }

    /// The state is about to be another: what this one came to says nothing about that.
    pub(super) fn forget_digests(&mut self) {
        if let Some(own) = self.place(self.me) {
            self.digests.forget(own, Op::new(u64::MAX));
            self.digests.disputed = None;
            self.digests.differing.clear();
        }
    }

    /// A view begins with this replica as its primary: what it heard of others in earlier ones may be of the past.
    pub(super) fn begin_to_judge(&mut self) {
        let own = self.place(self.me);
        for place in (0..VOTERS_MAX).filter(|place| Some(*place) != own) {
            self.digests.forget(place, Op::new(u64::MAX));
        }
        self.digests.disputed = None;
        self.digests.differing.clear();
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
            digests.differing.remove(&from);
        }
        // What nobody can have executed yet is not kept: it would take the place of what somebody did.
        if applied.op <= digests.cleared[place] || self.commit_max.op < applied.op {
            return;
        }
        digests.note(place, applied);
        self.compare(place, applied.op);
        self.look_at_digests(applied.op);
    }

    /// Notes whether a voter came to the same after an op, if both are known.
    fn compare(&mut self, place: usize, op: Op) {
        let Some((mine, theirs)) = self.own_and(place, op) else { return };
        let peer = self.membership.voters[place].replica;
        let differing = &mut self.digests.differing;
        if mine == theirs {
            // Of an earlier op, which comes late, it takes nothing back.
            differing.retain(|other, found| *other != peer || op < *found);
        } else if differing.insert(peer, op).is_none() {
            self.digests.differing_since = self.now.monotonic;
            self.event(Event::DigestMismatch { op, peer });
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
        let voters: Vec<_> = voters.collect();
        let is_there = |voter| voter == self.me || self.peers.is_heard(voter, now, window);
        let silent = bits(voters.iter().map(|(voter, digest)| digest.is_none() && is_there(*voter)));
        let (digests, marked) = (&row[..voters.len()], self.digests.marked());
        let Judgement { diverged, sound, majority } = judge(Heard { digests, silent, marked });
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
                self.handed_over = 0;
                self.event(Event::QuarantineLifted { op });
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

    /// What a voter may be: gone, or there and not heard, or heard to hold one of so many states.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Gone,
        Silent,
        Holds(u64),
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Voter {
        kind: Kind,
        marked: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Verdict {
        Diverged,
        /// As many against it as for it.
        Tied,
        Sound,
        Unjudged,
    }

    /// The rule as it is written down, once everybody who is waited for is heard.
    fn by_the_rule(voters: &[Voter], place: usize) -> Verdict {
        let Kind::Holds(own) = voters[place].kind else { return Verdict::Unjudged };
        let holders = |state| voters.iter().filter(|voter| voter.kind == Kind::Holds(state)).count();
        // More than half of all voters are right, and who alone is against so many is not.
        if voters.len() < 2 * holders(own) {
            return Verdict::Sound;
        }
        let others =
            voters.iter().filter(|voter| matches!(voter.kind, Kind::Holds(state) if state != own)).count();
        let is_alone = holders(own) == 1 && voters.len() < 2 * others;
        // The unmarked judge; whoever is marked and agrees with most of them is one of them again.
        let weigh = |counts: &dyn Fn(&Voter) -> bool, state: u64| {
            let (mut agree, mut differ) = (0, 0);
            for voter in voters.iter().filter(|voter| counts(voter)) {
                match voter.kind {
                    Kind::Holds(other) if other == state => agree += 1,
                    Kind::Holds(_) => differ += 1,
                    Kind::Gone | Kind::Silent => {}
                }
            }
            (agree, differ)
        };
        let is_cleared = |voter: &Voter| {
            let Kind::Holds(state) = voter.kind else { return false };
            let (agree, differ) = weigh(&|voter| !voter.marked, state);
            voters.len() < 2 * holders(state) || (1 <= agree && differ <= agree)
        };
        let counts = |voter: &Voter| !voter.marked || is_cleared(voter);
        if !counts(&voters[place]) {
            return Verdict::Unjudged;
        }
        match weigh(&counts, own) {
            (agree, differ) if agree < differ => Verdict::Diverged,
            _ if is_alone => Verdict::Diverged,
            (agree, differ) if agree == differ => Verdict::Tied,
            (1, _) => Verdict::Unjudged,
            _ => Verdict::Sound,
        }
    }

    /// Everything that those who are waited for may still say: each holds one of the states, or one that nobody else
    /// holds.
    fn completions(voters: &[Voter]) -> Vec<Vec<Voter>> {
        let mut all: Vec<Vec<Voter>> = std::vec![Vec::new()];
        for (place, voter) in voters.iter().enumerate() {
            let kinds: Vec<Kind> = match voter.kind {
                Kind::Silent if !voter.marked => {
                    (0..voters.len() as u64).chain([100 + place as u64]).map(Kind::Holds).collect()
                }
                kind => std::vec![kind],
            };
            let with = |begun: Vec<Voter>| {
                let choices = kinds.iter().map(|kind| Voter { kind: *kind, ..*voter });
                choices.map(|choice| begun.iter().copied().chain([choice]).collect()).collect::<Vec<_>>()
            };
            all = all.into_iter().flat_map(with).collect();
        }
        all
    }

    fn every_set(count: usize) -> impl Iterator<Item = Vec<Voter>> {
        let states = (0..count as u64).map(Kind::Holds);
        let kinds: Vec<Kind> = [Kind::Gone, Kind::Silent].into_iter().chain(states).collect();
        let all: Vec<Voter> =
            kinds.into_iter().flat_map(|kind| [false, true].map(|marked| Voter { kind, marked })).collect();
        (0..all.len().pow(count as u32)).map(move |number| {
            (0..count as u32).map(|place| all[number / all.len().pow(place) % all.len()]).collect()
        })
    }

    fn judged(voters: &[Voter]) -> Judgement {
        let digests: Vec<Option<Digest>> = voters
            .iter()
            .map(|voter| if let Kind::Holds(state) = voter.kind { Some(Digest(state)) } else { None })
            .collect();
        let silent = bits(voters.iter().map(|voter| voter.kind == Kind::Silent));
        judge(Heard { digests: &digests, silent, marked: bits(voters.iter().map(|voter| voter.marked)) })
    }

    /// Every set of one to four voters, each of them marked or not.
    #[test]
    fn nobody_is_judged_whom_one_who_is_waited_for_could_save_and_everybody_else_by_the_rule() {
        let mut looked_at = 0;
        for count in 1..=4 {
            for voters in every_set(count) {
                let judgement = judged(&voters);
                let ends = completions(&voters);
                for place in 0..count {
                    let verdicts: Vec<Verdict> = ends.iter().map(|end| by_the_rule(end, place)).collect();
                    let is_heard = matches!(voters[place].kind, Kind::Holds(_));
                    let all = |wanted| is_heard && verdicts.iter().all(|verdict| *verdict == wanted);
                    let tied = ends.len() == 1 && all(Verdict::Tied);
                    let is_diverged = judgement.diverged >> place & 1 == 1;
                    let is_sound = judgement.sound >> place & 1 == 1;
                    let is_new = (all(Verdict::Diverged) || tied) && !voters[place].marked;
                    assert_eq!(is_diverged, is_new, "{voters:?}, {place}: {verdicts:?}");
                    // One who is waited for may yet clear others, and make a tie of it: no reason to wait.
                    let may_be = is_heard
                        && verdicts.iter().all(|verdict| [Verdict::Sound, Verdict::Tied].contains(verdict));
                    let is_right = is_sound == all(Verdict::Sound) || (is_sound && may_be);
                    assert!(is_right, "{voters:?}, {place}: {verdicts:?}");
                    let own =
                        if let Kind::Holds(state) = voters[place].kind { Some(Digest(state)) } else { None };
                    assert!(!is_sound || judgement.majority == own);
                }
                looked_at += 1;
            }
        }
        println!("{looked_at} sets of answers");
        assert_eq!(looked_at, 6 + 64 + 1_000 + 20_736);
    }

    /// Every set of one to five voters: with the marked ones away nobody is better off, unless more than half of all
    /// voters hold the same, or are against it alone.
    #[test]
    fn a_marked_voter_brings_no_unmarked_one_down_whatever_it_holds() {
        let mut brought_down = 0;
        for count in 1..=5 {
            for voters in every_set(count) {
                let judgement = judged(&voters);
                if judgement.diverged == 0 {
                    continue;
                }
                let holders = |state| voters.iter().filter(|voter| voter.kind == Kind::Holds(state)).count();
                let has_most = (0..count as u64).any(|state| count < 2 * holders(state));
                let is_cleared = voters
                    .iter()
                    .enumerate()
                    .any(|(place, voter)| voter.marked && judgement.sound >> place & 1 == 1);
                let gone = |voter: &Voter| Voter {
                    kind: if voter.marked { Kind::Gone } else { voter.kind },
                    ..*voter
                };
                let without = judged(&voters.iter().map(gone).collect::<Vec<_>>());
                for place in (0..count).filter(|place| judgement.diverged >> place & 1 == 1) {
                    let Kind::Holds(own) = voters[place].kind else { panic!("it was not heard: {voters:?}") };
                    let heard = voters.iter().filter(|voter| matches!(voter.kind, Kind::Holds(_))).count();
                    let is_alone = holders(own) == 1 && count < 2 * (heard - 1);
                    let by_the_unmarked = without.diverged >> place & 1 == 1;
                    assert!(by_the_unmarked || has_most || is_alone || is_cleared, "{voters:?}: {place}");
                    brought_down += usize::from(by_the_unmarked);
                }
            }
        }
        assert!(10_000 < brought_down, "{brought_down}");
    }

    fn holds(states: &[(u64, bool)]) -> Vec<Voter> {
        states.iter().map(|(state, marked)| Voter { kind: Kind::Holds(*state), marked: *marked }).collect()
    }

    const SILENT: Voter = Voter { kind: Kind::Silent, marked: false };
    const GONE: Voter = Voter { kind: Kind::Gone, marked: false };
    const GONE_MARKED: Voter = Voter { kind: Kind::Gone, marked: true };

    fn verdict(voters: &[Voter]) -> (u8, u8) {
        let Judgement { diverged, sound, majority } = judged(voters);
        assert_eq!(majority.is_some(), sound != 0);
        (diverged, sound)
    }

    #[test]
    fn a_minority_is_diverged_both_sides_of_a_tie_are_and_so_is_everybody_without_a_majority() {
        let unmarked =
            |states: &[u64]| holds(&states.iter().map(|state| (*state, false)).collect::<Vec<_>>());
        let and = |states: &[u64], other| [unmarked(states), std::vec![other]].concat();
        assert_eq!(verdict(&unmarked(&[1, 2, 1])), (0b010, 0b101));
        assert_eq!(verdict(&and(&[1, 2], GONE)), (0b011, 0));
        assert_eq!(verdict(&and(&[1, 2], SILENT)), (0, 0));
        assert_eq!(verdict(&unmarked(&[1, 2, 3])), (0b111, 0));
        assert_eq!(verdict(&unmarked(&[1, 1, 2, 2])), (0b1111, 0));
        assert_eq!(verdict(&and(&[1, 1, 2, 2], SILENT)), (0, 0));
        assert_eq!(verdict(&unmarked(&[1, 1, 2, 2, 1])), (0b01100, 0b10011));
        assert_eq!(verdict(&unmarked(&[1])), (0, 1));
    }

    #[test]
    fn the_marked_are_left_out_until_they_agree_with_the_others_or_are_more_than_half_of_all() {
        let (yes, no) = (true, false);
        let and = |states: &[(u64, bool)], others: &[Voter]| [holds(states), others.to_vec()].concat();
        // One of three is marked, and the third is away, for a while or for ever.
        assert_eq!(verdict(&and(&[(1, no), (2, yes)], &[GONE])), (0, 0));
        assert_eq!(verdict(&and(&[(1, no), (2, no)], &[GONE_MARKED])), (0b011, 0));
        // It has come to the same again, and breaks the next tie.
        assert_eq!(verdict(&and(&[(1, no), (1, yes)], &[GONE])), (0, 0b011));
        assert_eq!(verdict(&holds(&[(1, no), (2, no), (1, yes)])), (0b010, 0b101));
        // Two of five that slipped alike, and one alone against them.
        assert_eq!(verdict(&and(&[(1, no), (2, yes), (2, yes)], &[GONE, GONE])), (0, 0));
        assert_eq!(verdict(&and(&[(2, yes), (2, yes)], &[SILENT, GONE, GONE])), (0, 0));
        // All marked: a majority of those who are there is not enough, for a death could make one out of a tie.
        assert_eq!(verdict(&and(&[(1, yes), (1, yes), (2, yes)], &[GONE_MARKED, GONE])), (0, 0));
        assert_eq!(verdict(&and(&[(1, yes), (1, yes), (2, yes), (1, yes)], &[GONE])), (0, 0b1011));
        assert_eq!(verdict(&and(&[(1, yes), (1, yes)], &[SILENT])), (0, 0b011));
        // A third that comes back to two that were marked by a tie: it decides, or they are three with three states.
        assert_eq!(verdict(&holds(&[(1, yes), (2, yes), (1, no)])), (0, 0b101));
        assert_eq!(verdict(&holds(&[(1, yes), (2, yes), (3, no)])), (0b100, 0));
    }
}
