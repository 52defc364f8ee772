//! The choice over everything that up to five voters can say of three ops, against §6.3 written down a second time:
//! as a count of answers.

use std::println;

use super::*;

const VOTERS_MAX: u8 = 5;
/// The newest log: each of its entries born in a view of its own.
const NEWEST: [u8; 3] = [0, 1, 2];

/// What a voter can say of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Present,
    Nack,
    Neither,
}

use Answer::{Nack, Neither, Present};

/// A voter's DoViewChange, and what it comes to.
#[derive(Clone, Debug)]
struct Voter {
    vote: DoViewChangeVote,
    /// Of the newest log: how many of its ops it holds, if that is the voter's log.
    length: Option<u8>,
    answers: [Answer; 3],
    /// Of what may have stood above the newest log.
    beyond: Answer,
}

impl Voter {
    fn of(log_stamp: u8, births: &[u8], bits: SuffixBits, uncertain: bool) -> DoViewChangeVote {
        DoViewChangeVote {
            log_stamp: LogStamp::adopted(at_view(log_stamp)),
            checkpoint: Op::ROOT,
            commit_max: root(),
            uncertain_from: uncertain.then(|| Op::new(births.len() as u64 + 1)),
            oldest: Op::new(1),
            suffix: (1..=births.len()).map(|end| header(&births[..end])).collect(),
            bits,
        }
    }

    /// The newest log up to `length`, everything present.
    fn newest(length: u8, uncertain: bool) -> Voter {
        let present = (1 << length) - 1;
        let bits = SuffixBits { present, nack: 0 };
        let above = if uncertain { Neither } else { Nack };
        let mut answers = [above; 3];
        answers[..usize::from(length)].fill(Present);
        let vote = Voter::of(2, &NEWEST[..usize::from(length)], bits, uncertain);
        Voter { vote, length: Some(length), answers, beyond: above }
    }

    /// The whole newest log, with these answers as bits.
    fn with_bits(answers: [Answer; 3]) -> Voter {
        let mut bits = SuffixBits::default();
        for (at, answer) in answers.into_iter().enumerate() {
            bits.present |= u16::from(answer == Present) << at;
            bits.nack |= u16::from(answer == Nack) << at;
        }
        Voter { vote: Voter::of(2, &NEWEST, bits, false), length: Some(3), answers, beyond: Nack }
    }

    fn older(log_stamp: u8, births: &[u8], uncertain: bool, answers: [Answer; 3]) -> Voter {
        let bits = SuffixBits { present: (1 << births.len()) - 1, nack: 0 };
        let vote = Voter::of(log_stamp, births, bits, uncertain);
        Voter { vote, length: None, answers, beyond: Nack }
    }

    /// Everything that a voter can say.
    fn all() -> Vec<Voter> {
        let each = [Present, Nack, Neither];
        let mut all = Vec::new();
        for first in each {
            for second in each {
                all.extend(each.map(|third| Voter::with_bits([first, second, third])));
            }
        }
        all.push(Voter::newest(2, false));
        all.extend((0..=3).map(|length| Voter::newest(length, true)));
        // An older log that goes on differently, and two whose replicas can't say what they held: what was
        // born after an older log was never in it.
        all.push(Voter::older(1, &[0, 0], false, [Present, Nack, Nack]));
        all.push(Voter::older(0, &[], true, [Neither, Nack, Nack]));
        all.push(Voter::older(1, &[0, 1], true, [Present, Present, Nack]));
        all
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    NeedMore,
    Unrecoverable(u64),
    /// The log ends here.
    End(u64),
}

/// §6.3 as a count of answers. `voters` holds one at least that has the newest log.
fn expected(quorums: Quorums, voters: &[&Voter]) -> Expected {
    if voters.len() < quorums.view_change {
        return Expected::NeedMore;
    }
    let undecided =
        |op| if voters.len() < quorums.voters { Expected::NeedMore } else { Expected::Unrecoverable(op) };
    let end = voters.iter().filter_map(|voter| voter.length).max().unwrap_or(0);
    for op in 1..=u64::from(end) {
        let count = |answer| voters.iter().filter(|voter| voter.answers[op as usize - 1] == answer).count();
        if count(Present) == 0 {
            return if quorums.nack <= count(Nack) { Expected::End(op - 1) } else { undecided(op) };
        }
    }
    let is_open = voters.iter().any(|voter| voter.length.is_some() && voter.beyond == Neither);
    let nacks = voters.iter().filter(|voter| voter.beyond == Nack).count();
    if is_open && nacks < quorums.nack { undecided(u64::from(end) + 1) } else { Expected::End(end.into()) }
}

/// Goes through all multisets of `voters` answers, silence among them.
fn for_each_multiset<'a>(
    all: &'a [Voter],
    voters: usize,
    from: usize,
    chosen: &mut Vec<&'a Voter>,
    look: &mut impl FnMut(&[&Voter]),
) {
    look(chosen);
    if chosen.len() < voters {
        for next in from..all.len() {
            chosen.push(&all[next]);
            for_each_multiset(all, voters, next, chosen, look);
            chosen.pop();
        }
    }
}

fn the_choice_is_what_the_answers_say(voters: u8) -> usize {
    let all = Voter::all();
    let quorums = Quorums::of(usize::from(voters));
    let ids: Vec<ReplicaId> = (0..voters).map(ReplicaId::new).collect();
    let mut looked_at = 0;
    for_each_multiset(&all, usize::from(voters), 0, &mut Vec::new(), &mut |heard| {
        if heard.iter().all(|voter| voter.length.is_none()) {
            return;
        }
        looked_at += 1;
        let votes = ids.iter().copied().zip(heard.iter().map(|voter| voter.vote.clone())).collect();
        let choice = match choose(quorums, &ids, &votes, Mutations::NONE) {
            Choice::NeedMore => Expected::NeedMore,
            Choice::Unrecoverable { op, .. } => Expected::Unrecoverable(op.value()),
            Choice::Fork { op } => panic!("a fork at op {op}: {heard:#?}"),
            Choice::Chosen(chosen) => {
                let head = chosen.head();
                assert_eq!(head, entry(&NEWEST[..head.op.value() as usize]), "{heard:#?}");
                Expected::End(head.op.value())
            }
        };
        assert_eq!(choice, expected(quorums, heard), "{heard:#?}");
    });
    println!("{voters} voters: {looked_at} sets of answers");
    looked_at
}

#[test]
fn of_three_ops_up_to_four_voters_choose_what_their_answers_say() {
    for (voters, at_least) in [(1, 30), (2, 500), (3, 6_000), (4, 60_000)] {
        assert!(at_least <= the_choice_is_what_the_answers_say(voters));
    }
}

#[test]
fn of_three_ops_five_voters_choose_what_their_answers_say() {
    assert!(500_000 <= the_choice_is_what_the_answers_say(VOTERS_MAX));
}
