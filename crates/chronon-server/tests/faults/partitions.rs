//! Messages that are lost on their way between replicas.

use std::time::Duration;

use crate::cluster::{Cluster, Setup};
use crate::common::eventually;
use crate::links::Mode;
use crate::load::Load;

/// What a client may have to wait when a link fails for a second, on a busy machine. What is excluded is an outage that
/// outlives the fault by far, as back-offs that are counted in seconds would make one.
const OUTAGE_MAX: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn links_that_lose_one_direction_for_a_second_cost_no_long_outage() {
    let cluster = Cluster::start(Setup::new(3)).await;
    let load = Load::steady(&cluster, 0);
    // From the primary to one backup, to both; and from one backup to the primary, from both.
    for (backups, outwards) in [(1, true), (2, true), (1, false), (2, false)] {
        load.more(50).await;
        let primary = cluster.primary().await;
        let directions = (1..=backups).map(|step| {
            let backup = (primary + step) % 3;
            if outwards { (primary, backup) } else { (backup, primary) }
        });
        let directions: Vec<(u8, u8)> = directions.collect();
        for (from, to) in &directions {
            cluster.links.set(*from, *to, Mode::Lose);
        }
        load.go_on(Duration::from_secs(1)).await;
        for (from, to) in &directions {
            cluster.links.set(*from, *to, Mode::Pass);
        }
    }
    load.more(100).await;
    let told = load.stop().await;
    assert!(told.outage < OUTAGE_MAX, "nobody was served for {:?}", told.outage);
    told.assert_kept(&cluster.books().await);
}

/// What a primary loses first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Acks,
    Everything,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_returns_with_uncommitted_ops_applies_nothing_twice() {
    let cluster = Cluster::start(Setup::new(3)).await;
    for first_lost in [Lost::Acks, Lost::Everything] {
        let (primary, view) = cluster.primary_after(None).await;
        let load = Load::steady(&cluster, primary);
        load.more(50).await;
        match first_lost {
            // The backups hold what the primary can't commit: their new primary inherits it, and the clients repeat it.
            Lost::Acks => cluster.links.set_all_to(primary, Mode::Lose),
            // Nobody else holds it: it goes, and what the clients repeat is all there is of it.
            Lost::Everything => cluster.links.set_all_of(primary, Mode::Lose),
        }
        eventually("the old primary holds ops that it cannot commit", async || {
            let status = cluster.status(primary).await;
            let backup = cluster.status((primary + 1) % 3).await;
            let inherited = status.commit < backup.op && backup.view == view;
            status.commit < status.op && (inherited || first_lost == Lost::Everything)
        })
        .await;
        cluster.links.set_all_of(primary, Mode::Lose);
        let (next, _) = cluster.primary_after(Some(view)).await;
        assert_ne!(next, primary);
        // The clients repeat there what they asked the old primary for.
        load.more(50).await;
        cluster.links.set_all_of(primary, Mode::Pass);
        eventually("the old primary follows", async || cluster.status(primary).await.role == "backup").await;
        load.more(50).await;
        let told = load.stop().await;
        told.assert_kept(&cluster.books().await);
    }
}
