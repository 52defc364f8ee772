//! The one with the gun.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chronon_vsr::Prng;

use super::clients::Workforce;
use super::receipt::Kill;
use super::{Killed, Outside};
use crate::local::LocalCluster;
use crate::output::Progress;

/// How long the cluster may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Acknowledgements that are waited for before a kill, at most.
const BEFORE_MAX: u32 = 50;

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
    pub(crate) async fn run(&mut self, kills: u32, power_cut: bool) -> anyhow::Result<Vec<Kill>> {
        let mut killed = Vec::new();
        if power_cut && !self.power_cut().await? {
            return Ok(killed);
        }
        for kill in 0..kills {
            // While the receiver is away effects are open, and a primary that dies then leaves them to the next one.
            let receiver_too = kill == kills / 2;
            if receiver_too {
                self.kill_receiver().await?;
            }
            self.pause(0, 300).await;
            let kill = self.kill_primary(kill + 1).await?;
            if receiver_too {
                self.outside.restart()?;
            }
            let Some(kill) = kill else { break };
            killed.push(kill);
        }
        if kills == 0 {
            self.kill_receiver().await?;
            self.pause(50, 300).await;
            self.outside.restart()?;
        }
        Ok(killed)
    }

    async fn pause(&mut self, from_ms: u64, to_ms: u64) {
        self.progress.acknowledged(self.work.acknowledged_count());
        tokio::time::sleep(Duration::from_millis(self.prng.between(from_ms, to_ms))).await;
    }

    /// Waits for a random moment in the middle of the load.
    async fn moment(&mut self) -> anyhow::Result<()> {
        self.work.pace.kill_is_near();
        let acknowledged = self.prng.between(1, u64::from(self.work.pace.before().clamp(1, BEFORE_MAX)));
        let acknowledged = u32::try_from(acknowledged).unwrap_or(1);
        let ended = tokio::time::timeout(PATIENCE, self.work.ended(acknowledged)).await;
        self.cluster.check_alive()?;
        ended.with_context(|| format!("no command was acknowledged within {PATIENCE:?}"))?;
        self.pause(0, 10).await;
        Ok(())
    }

    /// None: nothing was acknowledged any more after it.
    async fn kill_primary(&mut self, number: u32) -> anyhow::Result<Option<Kill>> {
        // Before the load gets dense, because asking takes time.
        let (primary, _) = self.cluster.lead().await?;
        self.moment().await?;
        let at = Instant::now();
        self.cluster.kill(primary)?;
        self.work.pace.killed();
        // One of two, or the only one, must come back before anything is acknowledged again.
        let needed = self.cluster.len() < 3;
        if needed {
            self.cluster.start(primary)?;
        }
        let Some(served) = self.success_after(at).await? else { return Ok(None) };
        self.work.pace.ease();
        self.progress.say(format!(
            "kill {number}: replica {primary}; a command that came after it was acknowledged {} ms later",
            (served - at).as_millis()
        ));
        if !needed {
            self.pause(0, 300).await;
            self.cluster.start(primary)?;
        }
        self.cluster.caught_up(primary).await?;
        Ok(Some(Kill { at, served }))
    }

    async fn success_after(&mut self, at: Instant) -> anyhow::Result<Option<Instant>> {
        let success = tokio::time::timeout(PATIENCE, self.work.success_after(at)).await;
        self.cluster.check_alive()?;
        success.with_context(|| format!("no command was acknowledged within {PATIENCE:?}"))
    }

    async fn kill_receiver(&mut self) -> anyhow::Result<()> {
        self.work.pace.kill_is_near();
        let how = match self.outside.kill_in_the_middle().await? {
            Killed::InTheMiddle => "in the middle of a request",
            Killed::Idle => "while no request came by",
        };
        self.work.pace.killed();
        self.work.pace.ease();
        self.progress.say(format!("the receiver was killed {how}"));
        Ok(())
    }

    /// False: nothing was acknowledged any more after it.
    async fn power_cut(&mut self) -> anyhow::Result<bool> {
        self.moment().await?;
        for replica in 0..self.cluster.len() {
            self.cluster.kill(replica)?;
        }
        self.work.pace.killed();
        self.progress.say("the power went, for all replicas at once".to_owned());
        let at = Instant::now();
        self.cluster.start_all()?;
        let is_back = self.success_after(at).await?.is_some();
        if is_back {
            self.work.pace.ease();
            self.progress.say("the cluster is back".to_owned());
        }
        Ok(is_back)
    }
}
