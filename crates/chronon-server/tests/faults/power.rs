//! Power cuts: nothing is acknowledged before a quorum has flushed it.

use crate::cluster::{Cluster, Setup};
use crate::common::within;
use crate::load::Load;

/// What a power cut may do to a cluster that breaks its word.
#[derive(Debug, PartialEq, Eq)]
enum Harm {
    /// These commands were acknowledged, and are not there.
    Lost(Vec<u64>),
    /// Nobody can say any more what was acknowledged.
    Silent(String),
}

/// Under load, cuts the power of some replicas and switches it on again, round after round.
async fn power_cuts(setup: Setup, rounds: u8, who: impl Fn(u8, &Cluster) -> Vec<u8>) -> Result<(), Harm> {
    let mut cluster = Cluster::start(setup).await;
    let load = Load::hasty(&cluster, 0);
    for round in 0..rounds {
        load.more(100).await;
        let dark = who(round, &cluster);
        cluster.cut_power(&dark);
        for replica in dark {
            cluster.start_one(replica).await;
        }
        let told = load.told();
        let read = within("query", cluster.client(0).query(&())).await;
        let books = read.map_err(|error| Harm::Silent(error.to_string()))?.answer;
        books.assert_sound();
        let lost = told.lost(&books);
        if !lost.is_empty() {
            return Err(Harm::Lost(lost));
        }
    }
    load.more(20).await;
    let told = load.stop().await;
    told.assert_kept(&cluster.books().await);
    Ok(())
}

fn everybody(_round: u8, cluster: &Cluster) -> Vec<u8> {
    cluster.replicas().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_all_replicas_loses_nothing_that_was_acknowledged() {
    assert_eq!(power_cuts(Setup::new(3), 4, everybody).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_of_one_replica_after_the_other_loses_nothing_that_was_acknowledged() {
    assert_eq!(power_cuts(Setup::new(3), 6, |round, _| vec![round % 3]).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_replica_acknowledges_only_what_it_flushed() {
    assert_eq!(power_cuts(Setup::new(1), 4, everybody).await, Ok(()));
}

#[cfg(feature = "mutations")]
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_acknowledges_before_it_flushes_is_caught_by_a_power_cut() {
    use chronon_vsr::{Mutation, Mutations};
    let mutations = Mutations::broken(Mutation::AckBeforeFlush);
    for replicas in [1, 3] {
        let setup = Setup { mutations, ..Setup::new(replicas) };
        assert!(power_cuts(setup, 1, everybody).await.is_err(), "{replicas} replicas");
    }
}
