//! What a backup in trouble costs. A healthy cluster is asked for a few commands one after another, then one backup is
//! dead, stopped, stalled or slow and it is asked once more: the answers may take little longer.

use chronon_kernel::Origin;
use chronon_vsr::{Duration, Prng, ReplicaId};

use crate::{
    CallKind, Checker, ClientConfig, DiskConfig, Fault, NetworkConfig, SinkBehaviour, Violation, World,
};

/// The kind of trouble for which a primary pauses.
const SLOWLY: &str = "slow";

/// Commands of a stretch that are measured.
const MEASURED: usize = 40;

/// Commands before those: views, timers and connections come to rest.
const WARM_UP: usize = 6;

/// A stretch that takes longer than this has come to a stop.
const STRETCH_MAX: Duration = Duration::from_secs(300);

/// How long a disk that is slow takes for each step, besides what it takes anyhow.
const SLOW: Duration = Duration::from_millis(20);

/// The longest pause after an op that a primary makes for the sake of a voter that lags and still follows.
const PAUSE_MAX: Duration = Duration::from_millis(40);

/// What the scheduling of halves may add by chance, at the median.
const CHANCE: Duration = Duration::from_millis(1);

/// The delays of a stretch's answers.
#[derive(Clone, Copy, Debug)]
struct Delays {
    p50: Duration,
    p99: Duration,
}

/// Where writing a checkpoint takes longer, rings of a few ops wait for it, and two replicas hide less of that than
/// three.
const CHECKPOINT_MAX: Duration = Duration::from_millis(2);

/// A log in which a checkpoint follows every other op waits for checkpoints, in whatever state its voters are.
const CHECKPOINTS_APART_MIN: u64 = 3;

/// Whether this cluster can be measured: a backup must be dispensable, with nobody in quarantine, callers must not be told to come back, and the
/// log must not wait for checkpoints most of the time.
pub(crate) fn is_measurable(world: &World) -> bool {
    let config = world.config();
    let ops_apart = config.ring.checkpoint_interval / chronon_vsr::charge(0);
    if CHECKPOINT_MAX < config.pace.checkpoint || ops_apart < CHECKPOINTS_APART_MIN {
        return false;
    }
    if world.replicas().into_iter().any(|replica| world.is_quarantined(replica)) {
        return false;
    }
    let queue = world.config().limits.queue_requests_max;
    3 <= world.replicas().len() && world.config().clients.clients as usize * 2 < queue
}

/// Compares a healthy stretch with one in which a backup is in trouble. All is quiet before and must become so again.
pub(crate) fn compare(world: &mut World, prng: &mut Prng) -> Result<(), Violation> {
    steady(world);
    let Some(healthy) = stretch(world, "healthy")? else { return Ok(()) };
    let Some(primary) = world.primary() else { return Ok(()) };
    let mut backups = world.replicas();
    backups.retain(|replica| *replica != primary);
    let backup = backups[prng.below(backups.len() as u64) as usize];
    world.forsake(backup);
    let how = trouble(world, prng, backup);
    let impaired = stretch(world, how)?;
    world.inflict(Fault::DiskStall(backup, Duration::ZERO));
    world.inflict(Fault::Resume(backup));
    world.inflict(Fault::Start(backup));
    world.welcome(backup);
    let Some(impaired) = impaired else { return Ok(()) };
    world.reach("PerformanceCompared");
    let config = *world.config();
    let flush = config.disk.write_min + config.disk.flush_min;
    // Every backup is as far away as any other. What a second one hid is that a disk may be busy when an entry comes:
    // with evidence, or with a checkpoint, which come every few ops here. The slowest answer of a stretch may have met
    // a checkpoint that the ring had to wait for.
    // A primary pauses after each op for a voter that lags: before a command come the end of an effect and its claim, and
    // at times a tick and a timer.
    let pause = if how == SLOWLY { PAUSE_MAX } else { Duration::ZERO };
    let most_p50 = healthy.p50 * 5 / 4 + 3 * flush + 3 * pause + CHANCE;
    let most_p99 = 2 * healthy.p99 + 3 * flush + config.pace.checkpoint + 10 * CHANCE;
    // How long the slowest of a few answers waits for a ring of a few ops to turn, with everybody waiting for the slowest
    // voter, says nothing.
    if most_p50 < impaired.p50 || (how != SLOWLY && most_p99 < impaired.p99) {
        let what = format!(
            "with R{backup} {how} commands take {impaired:?}; healthy they took {healthy:?}, and a flush takes {flush:?}"
        );
        return Err(Violation::new(Checker::Performance, what));
    }
    Ok(())
}

/// Nothing happens by chance but what halves do when.
fn steady(world: &mut World) {
    let config = *world.config();
    world.set_network(NetworkConfig {
        delay_mean: Duration::ZERO,
        loss: 0,
        duplicate: 0,
        replay: 0,
        ..config.network
    });
    world.set_disks(DiskConfig { jitter_mean: Duration::ZERO, ..config.disk });
    world.set_sinks(SinkBehaviour { permanent: config.sinks.permanent, ..SinkBehaviour::GOOD });
    let patience = config.clients.patience.max(Duration::from_secs(2));
    let think_mean = Duration::from_millis(5);
    world.set_clients(ClientConfig {
        duplicate: 0,
        crash: 0,
        give_up: 0,
        wander: 0,
        think_mean,
        patience,
        ..config.clients
    });
}

fn trouble(world: &mut World, prng: &mut Prng, backup: ReplicaId) -> &'static str {
    match prng.below(4) {
        0 => {
            world.inflict(Fault::Kill(backup));
            "dead"
        }
        1 => {
            world.inflict(Fault::Pause(backup));
            "stopped"
        }
        2 => {
            world.inflict(Fault::DiskStall(backup, Duration::from_secs(86_400)));
            "stalled"
        }
        _ => {
            world.inflict(Fault::DiskStall(backup, SLOW));
            SLOWLY
        }
    }
}

/// One client asks for one command after another. A command that has to be sent again says nothing: rings are so small
/// here that a primary may be busy, and the client then asks whoever comes to its mind. None if too few are left.
fn stretch(world: &mut World, how: &str) -> Result<Option<Delays>, Violation> {
    let before = world.history().completed().len();
    for number in 0..WARM_UP + MEASURED {
        let (workload, prng) = world.workload();
        let body = workload.command(prng);
        let (principal, key) = ("performance".to_owned(), format!("{how} {number}"));
        world.ask(1, CallKind::Command { origin: Origin::Key { principal, key }, body });
    }
    let end = world.now() + STRETCH_MAX;
    while !world.clients_done() {
        if end <= world.now() {
            let what = format!("a stretch with a backup that is {how} takes longer than {STRETCH_MAX:?}");
            return Err(Violation::new(Checker::Performance, what));
        }
        world.run_for(Duration::from_millis(20));
        if let Some(violation) = world.violation() {
            return Err(violation.clone());
        }
    }
    let completed = world.history().completed()[before..].iter();
    let commands = completed.filter(|completed| matches!(completed.kind, CallKind::Command { .. }));
    let at_once = commands.skip(WARM_UP).filter(|completed| completed.attempts == 1);
    let delays = at_once.map(|completed| completed.completed.since(completed.invoked));
    let mut delays: Vec<Duration> = delays.collect();
    delays.sort_unstable();
    let of = |share: usize| delays.get(delays.len() * share / 100).copied().unwrap_or_default();
    Ok((MEASURED / 2 <= delays.len()).then(|| Delays { p50: of(50), p99: of(99) }))
}

#[cfg(test)]
mod tests {
    use chronon_kernel::Contract;
    use chronon_vsr::charge;

    use super::*;
    use crate::{BankWorkload, Config};

    /// Seed 462313838685: a checkpoint for every other op, and what waits for it, was taken for the price of a stalled disk.
    #[test]
    fn a_log_that_waits_for_checkpoints_is_not_measured() {
        let is_measurable = |ops: u64, checkpoint| {
            let mut config = Config::calm(3, 1);
            config.ring.checkpoint_interval = ops * charge(0);
            config.pace.checkpoint = checkpoint;
            is_measurable(&World::new(config, Box::new(BankWorkload::new(Contract::AtMostOnce))))
        };
        assert!(is_measurable(3, CHECKPOINT_MAX));
        assert!(!is_measurable(2, CHECKPOINT_MAX));
        assert!(!is_measurable(3, CHECKPOINT_MAX + Duration::from_micros(1)));
    }
}
