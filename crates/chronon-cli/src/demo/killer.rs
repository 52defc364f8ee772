//! The one with the gun.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_vsr::Prng;

use super::Outside;
use super::clients::Workforce;
use crate::local::LocalCluster;
use crate::output::Progress;

/// How long the cluster may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Kills primaries, and once the receiver.
pub(crate) struct Killer {
    pub(crate) cluster: LocalCluster,
    pub(crate) outside: Outside,
    pub(crate) work: Arc<Workforce>,
    pub(crate) prng: Prng,
    pub(crate) progress: Progress,
}

impl Killer {
    /// Kills the primary so many times, and says when. With `power_cut` the power goes for all replicas first.
    pub(crate) async fn run(&mut self, kills: u32, power_cut: bool) -> anyhow::Result<Vec<Instant>> {
        let mut killed = Vec::new();
        if power_cut {
            self.pause(300, 600).await;
            self.power_cut().await?;
        }
        for kill in 0..kills {
            self.pause(100, 600).await;
            if kill == kills / 2 {
                self.kill_receiver().await?;
            }
            if !self.work.has_more() {
                self.progress.say("the transfers are used up before the kills".to_owned());
                break;
            }
            let Some(at) = self.kill_primary(kill + 1).await? else { break };
            killed.push(at);
            self.work.kill_done();
        }
        if kills == 0 {
            self.kill_receiver().await?;
        }
        Ok(killed)
    }

    async fn pause(&mut self, from_ms: u64, to_ms: u64) {
        self.progress.acknowledged(self.work.acknowledged_count());
        tokio::time::sleep(Duration::from_millis(self.prng.between(from_ms, to_ms))).await;
    }

    /// None: nothing was acknowledged any more after it.
    async fn kill_primary(&mut self, number: u32) -> anyhow::Result<Option<Instant>> {
        let (primary, _) = self.cluster.lead().await?;
        let at = Instant::now();
        self.cluster.kill(primary)?;
        // One of two, or the only one, must come back before anything is acknowledged again.
        let needed = self.cluster.len() < 3;
        if needed {
            self.cluster.start(primary)?;
        }
        if !self.success_after(at).await? {
            return Ok(None);
        }
        let until = at.elapsed();
        self.progress.say(format!(
            "kill {number}: replica {primary}; the next command was acknowledged {} ms later",
            until.as_millis()
        ));
        if !needed {
            self.pause(0, 300).await;
            self.cluster.start(primary)?;
        }
        self.cluster.caught_up(primary).await?;
        Ok(Some(at))
    }

    async fn success_after(&mut self, at: Instant) -> anyhow::Result<bool> {
        let success = tokio::time::timeout(PATIENCE, self.work.success_after(at)).await;
        self.cluster.check_alive()?;
        success.with_context(|| format!("no command was acknowledged within {PATIENCE:?}"))
    }

    async fn kill_receiver(&mut self) -> anyhow::Result<()> {
        self.outside.kill_in_the_middle().await?;
        self.progress.say("the receiver was killed in the middle of a request".to_owned());
        self.pause(50, 300).await;
        self.outside.restart()
    }

    async fn power_cut(&mut self) -> anyhow::Result<()> {
        for replica in 0..self.cluster.len() {
            self.cluster.kill(replica)?;
        }
        self.progress.say("the power went, for all replicas at once".to_owned());
        self.cluster.start_all()?;
        let success = self.success_after(Instant::now()).await?;
        if success {
            self.progress.say("the cluster is back".to_owned());
        }
        Ok(())
    }
}
