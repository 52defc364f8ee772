//! The recovery table (PROTOCOL §7): what a start-up scan may conclude about one group. A pure function, so that all
//! of it can be enumerated.

use chronon_vsr::{Mutation, Mutations};

/// What the units of a group look like, compared with the group's own sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Units {
    /// All of them belong to the group.
    New,
    /// At least one is older than the group, or was never written: the flush of the group never returned, for a
    /// flushed unit does not grow old again.
    SomeOld,
    /// None is old, at least one can't be read as anything: rot.
    SomeBad,
}

/// Whether bodies are the ones that the entry headers name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contents {
    Right,
    Wrong,
}

/// Whether the identity of every entry is known, from the group's header or from the next group's copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Names {
    Known,
    Lost,
}

/// Whether some later group says that this one was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Evidence {
    Durable,
    None,
}

/// What stands before the group in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Before {
    /// No group of the same incarnation was cut.
    Whole,
    /// One was: reports are in order, so nothing after it was reported either.
    Cut,
}

/// What is known of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupFacts {
    pub(crate) units: Units,
    pub(crate) contents: Contents,
    pub(crate) names: Names,
    pub(crate) evidence: Evidence,
    pub(crate) before: Before,
}

/// What to make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GroupVerdict {
    /// Everything is here.
    Intact,
    /// Never durable, so never acked: it is as if it had not been written.
    Cut,
    /// Each entry by its own checksum: intact or faulty. Nothing is unknown.
    EntryByEntry,
    /// It may have been durable, and what it held is lost: nobody knows where the log ended.
    HeadUncertain,
    /// It was durable, and what it held is lost. The hash chain or the suffix may still name it; what neither names
    /// makes the head uncertain as well.
    EntriesUnknown,
}

/// The table, first row first.
pub(crate) fn judge(facts: GroupFacts, mutations: Mutations) -> GroupVerdict {
    let GroupFacts { units, contents, names, evidence, before } = facts;
    match evidence {
        Evidence::None => {
            if before == Before::Cut || units == Units::SomeOld {
                return GroupVerdict::Cut;
            }
            if units == Units::SomeBad && mutations.breaks(Mutation::BadUnitsCutAsTorn) {
                return GroupVerdict::Cut;
            }
        }
        // A later group could say so only after this one was reported, hence after every group before it.
        Evidence::Durable => {}
    }
    match (units, contents, names, evidence) {
        (Units::New, Contents::Right, Names::Known, _) => GroupVerdict::Intact,
        (_, _, Names::Known, _) => GroupVerdict::EntryByEntry,
        (_, _, Names::Lost, Evidence::None) => GroupVerdict::HeadUncertain,
        (_, _, Names::Lost, Evidence::Durable) => GroupVerdict::EntriesUnknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (&'static str, fn(GroupFacts) -> bool, GroupVerdict);

    /// The specification's table as disjoint conditions, written apart from the code above.
    const ROWS: [Row; 6] = [
        (
            "all units new, checksums right",
            |f| {
                f.units == Units::New
                    && f.contents == Contents::Right
                    && f.names == Names::Known
                    && !(f.before == Before::Cut && f.evidence == Evidence::None)
            },
            GroupVerdict::Intact,
        ),
        (
            "torn, or after a torn one of the same incarnation",
            |f| f.evidence == Evidence::None && (f.units == Units::SomeOld || f.before == Before::Cut),
            GroupVerdict::Cut,
        ),
        (
            "names readable, something bad, no evidence",
            |f| {
                f.evidence == Evidence::None
                    && f.before == Before::Whole
                    && f.names == Names::Known
                    && (f.units == Units::SomeBad || (f.units == Units::New && f.contents == Contents::Wrong))
            },
            GroupVerdict::EntryByEntry,
        ),
        (
            "names lost, no evidence",
            |f| {
                f.evidence == Evidence::None
                    && f.before == Before::Whole
                    && f.names == Names::Lost
                    && f.units != Units::SomeOld
            },
            GroupVerdict::HeadUncertain,
        ),
        (
            "names readable, something wrong, evidence",
            |f| {
                f.evidence == Evidence::Durable
                    && f.names == Names::Known
                    && !(f.units == Units::New && f.contents == Contents::Right)
            },
            GroupVerdict::EntryByEntry,
        ),
        (
            "names lost, evidence",
            |f| f.evidence == Evidence::Durable && f.names == Names::Lost,
            GroupVerdict::EntriesUnknown,
        ),
    ];

    fn all_facts() -> Vec<GroupFacts> {
        let mut all = Vec::new();
        for units in [Units::New, Units::SomeOld, Units::SomeBad] {
            for contents in [Contents::Right, Contents::Wrong] {
                for names in [Names::Known, Names::Lost] {
                    for evidence in [Evidence::Durable, Evidence::None] {
                        for before in [Before::Whole, Before::Cut] {
                            all.push(GroupFacts { units, contents, names, evidence, before });
                        }
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_case_meets_one_row_of_the_table_and_every_row_is_met() {
        let mut met = [0; ROWS.len()];
        for facts in all_facts() {
            let rows: Vec<usize> = (0..ROWS.len()).filter(|row| ROWS[*row].1(facts)).collect();
            assert_eq!(rows.len(), 1, "{facts:?} meets {rows:?}");
            let (name, _, verdict) = ROWS[rows[0]];
            assert_eq!(judge(facts, Mutations::NONE), verdict, "{facts:?}: {name}");
            met[rows[0]] += 1;
        }
        assert_eq!(met.iter().sum::<usize>(), 48);
        assert!(met.iter().all(|count| 0 < *count), "{met:?}");
    }

    #[test]
    fn evidence_forbids_cutting_and_an_old_unit_without_evidence_demands_it() {
        for facts in all_facts() {
            let verdict = judge(facts, Mutations::NONE);
            assert!(facts.evidence == Evidence::None || verdict != GroupVerdict::Cut, "{facts:?}");
            let torn = facts.units == Units::SomeOld && facts.evidence == Evidence::None;
            assert!(!torn || verdict == GroupVerdict::Cut, "{facts:?}");
        }
    }
}
