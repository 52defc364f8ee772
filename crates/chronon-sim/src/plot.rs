//! Plots: misfortunes that wait for their moment. A dice throw now and then never kills a primary just when one backup
//! alone has its newest entry; a plot looks at the world after every event and strikes then.

use chronon_storage::{File, Step};
use chronon_vsr::{Duration, Event, Op, Payload, Prng, Quorums, ReplicaId, Role};

use crate::trace::Who;
use crate::world::{index, unnamed};
use crate::{CallKind, Envelope, Fate, Fault, Menu, SinkBehaviour, Violation, World};

/// How long a plot waits for its moment.
const PATIENCE: Duration = Duration::from_millis(400);

/// How long the power is gone at least.
pub(crate) const BLACKOUT_MIN: Duration = Duration::from_secs(24);

/// A misfortune with a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plot {
    /// A primary is cut off with its clients, and comes back to another view; then both are killed in turn.
    Stranded,
    /// A primary is killed or cut off when one backup alone has its newest entry.
    OneHeard,
    /// A process is killed between a write and its flush, reads back what it wrote, and then the power goes.
    ReadBack,
    /// What a backup acked last rots, and the others who have it are away.
    RottenTail,
    /// The headers of a backup's last groups rot in the middle of a view change.
    Beheaded,
    /// Acks are held back while one primary after the other steps down.
    Dam,
    /// One primary after the other steps down or is killed as soon as it leads.
    Storm,
    /// A primary's execution rests; it is cut off and wakes up under another view.
    Sleepwalker,
    /// Whoever leads next executes slowly, and then the primary dies.
    SlowHeir,
    /// A primary is cut off while its sinks hang, and comes back with bad news.
    BadNews,
    /// A backup loses an op that the only peer who is there has in a checkpoint alone, and must fetch that state while
    /// its log above the op is whole.
    Hollow,
    /// Sinks act long after they were asked, and meanwhile all clocks are set forward together.
    Warp,
    /// The power is gone for longer than sinks remember keys, and fewer clocks than a quorum stood still meanwhile.
    Blackout,
    /// A primary's disk stands still with something to write, until its view is old enough to be given up for that.
    Standstill,
}

impl Plot {
    /// Those that are chosen among; a standstill takes ten seconds and comes last, if it comes.
    const ALL: [Plot; 13] = [
        Plot::Stranded,
        Plot::OneHeard,
        Plot::ReadBack,
        Plot::RottenTail,
        Plot::Beheaded,
        Plot::Dam,
        Plot::Storm,
        Plot::Sleepwalker,
        Plot::SlowHeir,
        Plot::BadNews,
        Plot::Hollow,
        Plot::Warp,
        Plot::Blackout,
    ];

    /// The plots that need no other kinds of misfortune than these. `forgets`: some sink forgets keys within a blackout;
    /// few do, so where one does it is likely to be tried.
    pub(crate) fn of(menu: &Menu, replicas: usize, forgets: bool) -> Vec<Plot> {
        let possible = |plot: &Plot| match plot {
            Plot::Stranded | Plot::OneHeard => menu.partition && menu.kill && 3 <= replicas,
            Plot::ReadBack => menu.kill && menu.power && 2 <= replicas,
            Plot::RottenTail | Plot::Beheaded => menu.kill && menu.rot && 3 <= replicas,
            Plot::Dam => menu.wires && menu.step_down && 2 <= replicas,
            Plot::Storm => menu.step_down && 2 <= replicas,
            Plot::Sleepwalker => menu.partition && menu.slow && 3 <= replicas,
            Plot::SlowHeir => menu.kill && menu.slow && 3 <= replicas,
            Plot::BadNews => menu.partition && menu.sinks && 3 <= replicas,
            Plot::Hollow => menu.kill && menu.rot && replicas == 3,
            Plot::Warp => menu.clock && menu.sinks,
            Plot::Blackout => menu.clock && menu.sinks && menu.power && 2 <= replicas && forgets,
            Plot::Standstill => menu.stall && 3 <= replicas,
        };
        let weight = |plot: Plot| if plot == Plot::Blackout { 12 } else { 1 };
        let plots = Plot::ALL.into_iter().filter(possible);
        plots.flat_map(|plot| std::iter::repeat_n(plot, weight(plot))).collect()
    }

    /// Lets the plot take its course. `victim` is the only replica whose disk may rot.
    pub(crate) fn play(self, world: &mut World, prng: &mut Prng, victim: ReplicaId) -> Result<(), Violation> {
        world.note(Who::Fault, self as u64, || format!("plot: {self:?}"));
        let Some(primary) = world.primary() else { return Ok(()) };
        world.reach(self.name());
        let others: Vec<ReplicaId> = world.replicas().into_iter().filter(|id| *id != primary).collect();
        let mut stage = Stage { world, prng, primary, others };
        match self {
            Plot::Stranded => stage.stranded(),
            Plot::OneHeard => stage.one_heard(),
            Plot::ReadBack => stage.read_back(),
            Plot::RottenTail => stage.rotten_tail(victim),
            Plot::Beheaded => stage.beheaded(victim),
            Plot::Dam => stage.dam(),
            Plot::Storm => stage.storm(),
            Plot::Sleepwalker => stage.sleepwalker(),
            Plot::SlowHeir => stage.slow_heir(),
            Plot::BadNews => stage.bad_news(),
            Plot::Hollow => stage.hollow(victim),
            Plot::Warp => stage.warp(),
            Plot::Blackout => stage.blackout(),
            Plot::Standstill => stage.standstill(),
        }
    }

    /// For coverage.
    const fn name(self) -> &'static str {
        match self {
            Plot::Stranded => "Plot(Stranded)",
            Plot::OneHeard => "Plot(OneHeard)",
            Plot::ReadBack => "Plot(ReadBack)",
            Plot::RottenTail => "Plot(RottenTail)",
            Plot::Beheaded => "Plot(Beheaded)",
            Plot::Dam => "Plot(Dam)",
            Plot::Storm => "Plot(Storm)",
            Plot::Sleepwalker => "Plot(Sleepwalker)",
            Plot::SlowHeir => "Plot(SlowHeir)",
            Plot::BadNews => "Plot(BadNews)",
            Plot::Hollow => "Plot(Hollow)",
            Plot::Warp => "Plot(Warp)",
            Plot::Blackout => "Plot(Blackout)",
            Plot::Standstill => "Plot(Standstill)",
        }
    }
}

/// A world in a plot's hands.
struct Stage<'a> {
    world: &'a mut World,
    prng: &'a mut Prng,
    /// Who led when it began.
    primary: ReplicaId,
    others: Vec<ReplicaId>,
}

type Played = Result<(), Violation>;

impl Stage<'_> {
    /// Event by event until this holds, or for as long as there is patience. Whether it held.
    fn until(&mut self, patience: Duration, holds: impl Fn(&World) -> bool) -> Result<bool, Violation> {
        let end = self.world.now() + patience;
        while !holds(self.world) {
            if end <= self.world.now() || !self.world.step() {
                return self.world.violation().cloned().map_or(Ok(false), Err);
            }
        }
        Ok(true)
    }

    fn run(&mut self, duration: Duration) -> Played {
        self.world.run_for(duration);
        self.world.violation().cloned().map_or(Ok(()), Err)
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.prng.between(least, most))
    }

    fn micros(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.prng.between(least, most))
    }

    fn one_of(&mut self, replicas: &[ReplicaId]) -> ReplicaId {
        replicas[self.prng.below(replicas.len() as u64) as usize]
    }

    fn kill(&mut self, replica: ReplicaId, least: u64, most: u64) {
        self.world.inflict(Fault::Kill(replica));
        let away = self.millis(least, most);
        self.world.inflict_after(away, Fault::Start(replica));
    }

    fn cut(&mut self, one: ReplicaId, other: ReplicaId) {
        self.world.inflict(Fault::Cut(one, other));
        self.world.inflict(Fault::Cut(other, one));
    }

    fn cut_off(&mut self, replica: ReplicaId) {
        for other in self.world.replicas().into_iter().filter(|other| *other != replica) {
            self.cut(replica, other);
        }
    }

    fn mend(&mut self) {
        self.world.inflict(Fault::MendAll);
    }

    /// Another replica than the first primary leads and serves.
    fn until_replaced(&mut self) -> Result<bool, Violation> {
        let old = self.primary;
        self.until(Duration::from_secs(3), move |world| world.primary().is_some_and(|primary| primary != old))
    }

    fn stranded(&mut self) -> Played {
        let old = self.primary;
        self.cut_off(old);
        if !self.until_replaced()? {
            self.mend();
            return Ok(());
        }
        let head = self.world.commits().head();
        if self.prng.chance(1, 2) {
            // The new view has just committed something of its own; who leads it dies, and the old one is back.
            self.until(PATIENCE, |world| head < world.commits().head())?;
            if let Some(new) = self.world.primary() {
                self.kill(new, 500, 2_000);
            }
            self.mend();
            return self.run(Duration::from_millis(100));
        }
        let stay = self.millis(0, 1_200);
        self.run(stay)?;
        self.mend();
        // It adopts the log that left its own tail out, and dies with that tail on its disk.
        let adopted = self.until(PATIENCE, move |world| {
            matches!(world.status(old).map(|status| status.role), Some(Role::Backup { .. }))
        })?;
        if adopted {
            self.kill(old, 0, 20);
            let pause = self.micros(0, 30_000);
            self.run(pause)?;
            if self.prng.chance(1, 2)
                && let Some(new) = self.world.primary()
            {
                self.kill(new, 100, 1_000);
            }
        }
        Ok(())
    }

    fn standstill(&mut self) -> Played {
        let primary = self.primary;
        self.world.inflict(Fault::DiskStall(primary, Duration::from_secs(86_400)));
        let leads = |world: &World| {
            matches!(world.status(primary).map(|status| status.role), Some(Role::Primary { .. }))
        };
        // Something to write; and no view is given up for a slow disk in its first ten seconds.
        for _ in 0..12 {
            if !leads(self.world) {
                break;
            }
            let (workload, prng) = self.world.workload();
            let body = workload.command(prng);
            self.world.ask(1, CallKind::Command { origin: unnamed(), body });
            self.run(Duration::from_secs(1))?;
        }
        self.world.inflict(Fault::DiskStall(primary, Duration::ZERO));
        Ok(())
    }

    fn one_heard(&mut self) -> Played {
        let old = self.primary;
        let heard = self.one_of(&self.others.clone());
        for other in self.others.clone() {
            if other != heard {
                self.world.inflict(Fault::Cut(old, other));
            }
        }
        let head = self.world.replica(heard).map(chronon_vsr::Replica::head);
        let moment = move |world: &World| world.replica(heard).map(chronon_vsr::Replica::head) > head;
        self.until(PATIENCE, moment)?;
        let pause = self.micros(0, 2_000);
        self.run(pause)?;
        match self.prng.below(3) {
            0 => self.kill(old, 200, 1_500),
            1 => {
                self.kill(old, 200, 1_500);
                self.kill(heard, 1, 500);
            }
            _ => {
                self.cut_off(old);
                let length = self.millis(200, 1_500);
                self.world.inflict_after(length, Fault::MendAll);
                return Ok(());
            }
        }
        self.mend();
        Ok(())
    }

    fn read_back(&mut self) -> Played {
        let target = self.one_of(&self.others.clone());
        if self.prng.chance(2, 3) {
            // The primary needs this very ack.
            for other in self.others.clone() {
                if other != target {
                    self.cut(self.primary, other);
                }
            }
        }
        let flushing = move |world: &World| {
            let process = world.machines[index(target)].process.as_ref();
            let steps = process.into_iter().flat_map(|process| process.jobs.values());
            let mut first = steps.filter_map(|running| running.steps.front());
            first.any(|step| matches!(step, Step::Flush { file: File::Wal }))
        };
        if self.until(PATIENCE, flushing)? {
            self.world.inflict(Fault::Kill(target));
            let acks = self.world.promises.acks(target);
            self.world.inflict(Fault::Start(target));
            self.until(PATIENCE, |world| acks < world.promises.acks(target))?;
            self.world.inflict(Fault::PowerOff(target));
            let boot = self.millis(1, 200);
            self.world.inflict_after(boot, Fault::Start(target));
        }
        self.mend();
        Ok(())
    }

    fn rotten_tail(&mut self, victim: ReplicaId) -> Played {
        if victim == self.primary {
            return Ok(());
        }
        // So few take part that nobody else holds what these commit.
        let needed = Quorums::of(self.world.replicas().len()).replication;
        let (mut apart, mut knowing) = (Vec::new(), vec![self.primary, victim]);
        for other in self.others.clone().into_iter().filter(|other| *other != victim) {
            if knowing.len() < needed {
                knowing.push(other);
            } else {
                apart.push(other);
            }
        }
        for one in &apart {
            for other in &knowing {
                self.cut(*one, *other);
            }
        }
        let acks = self.world.promises.acks(victim);
        let head = self.world.commits().head();
        let committed =
            move |world: &World| acks + 1 < world.promises.acks(victim) && head < world.commits().head();
        self.until(PATIENCE, committed)?;
        for other in knowing {
            if other != victim {
                self.kill(other, 700, 2_500);
            }
        }
        self.world.inflict(Fault::Kill(victim));
        for _ in 0..self.prng.between(1, 4) {
            let what = if self.prng.chance(1, 2) { Rotten::Anything } else { Rotten::Entry };
            self.world.rot_tail(victim, what, self.prng.next_u64());
        }
        self.mend();
        self.world.inflict(Fault::Start(victim));
        self.run(Duration::from_millis(500))
    }

    fn beheaded(&mut self, victim: ReplicaId) -> Played {
        if victim == self.primary {
            return Ok(());
        }
        let acks = self.world.promises.acks(victim);
        self.until(PATIENCE, move |world| acks < world.promises.acks(victim))?;
        let stamp = self.world.promises.kept_stamp(victim);
        self.kill(self.primary, 300, 1_500);
        self.until(Duration::from_secs(1), move |world| stamp < world.promises.kept_stamp(victim))?;
        self.world.inflict(Fault::Kill(victim));
        for group in 0..self.prng.between(1, 3) {
            self.world.rot_tail(victim, Rotten::Header, group);
        }
        self.world.inflict(Fault::Start(victim));
        self.run(Duration::from_millis(300))
    }

    /// The next primary steps down as soon as it has begun its view, so many times.
    fn step_downs(&mut self, times: u64, kills: bool) -> Played {
        for _ in 0..times {
            let leads = |world: &World| world.leaders().next().is_some();
            if !self.until(PATIENCE, leads)? {
                break;
            }
            let Some(leader) = self.world.leaders().last() else { break };
            let pause = self.micros(0, 5_000);
            self.run(pause)?;
            let begun = self.world.begun_views();
            if kills && self.prng.chance(1, 3) {
                self.kill(leader, 1, 300);
            } else {
                self.world.inflict(Fault::StepDown(leader));
            }
            self.until(PATIENCE, move |world| begun < world.begun_views())?;
        }
        Ok(())
    }

    fn storm(&mut self) -> Played {
        let times = self.prng.between(2, 8);
        self.step_downs(times, true)
    }

    fn dam(&mut self) -> Played {
        self.world.network.set_filter(Some(Box::new(|envelope| match envelope.message.payload {
            Payload::PrepareOk { .. } => Fate::Hold,
            _ => Fate::Pass,
        })));
        let pause = self.millis(1, 30);
        let played = self.run(pause).and_then(|()| self.old_acks_first());
        self.world.network.set_filter(None);
        self.world.release_held();
        played
    }

    /// One primary after the other steps down while no ack arrives. Who leads for the second time hears what it was
    /// acked the first time, before anything that it is acked now.
    fn old_acks_first(&mut self) -> Played {
        let times = 2 * self.world.replicas().len() as u64 + 1;
        for _ in 0..times {
            self.step_downs(1, false)?;
            let Some(leader) = self.world.leaders().last() else { break };
            let Some(stamp) = self.world.replica(leader).map(chronon_vsr::Replica::stamp) else { break };
            let is_old = |held: &Envelope| held.to == leader && held.message.stamp < stamp;
            let (old, rest): (Vec<_>, Vec<_>) = self.world.network.take_held().into_iter().partition(is_old);
            self.world.network.hold(rest);
            self.world.deliver_now(old);
            let pause = self.micros(100, 3_000);
            self.run(pause)?;
        }
        Ok(())
    }

    fn sleepwalker(&mut self) -> Played {
        let old = self.primary;
        let rest = self.millis(900, 1_900);
        self.world.rest_execution(old, rest);
        let pause = self.millis(1, 40);
        self.run(pause)?;
        self.cut_off(old);
        self.run(Duration::from_millis(2_500))?;
        self.mend();
        Ok(())
    }

    fn slow_heir(&mut self) -> Played {
        for other in self.others.clone() {
            let rest = self.millis(200, 2_500);
            self.world.rest_execution(other, rest);
        }
        let pause = self.millis(1, 40);
        self.run(pause)?;
        self.kill(self.primary, 300, 1_500);
        self.run(Duration::from_millis(600))
    }

    fn bad_news(&mut self) -> Played {
        let usual = self.world.config().sinks;
        let slow = SinkBehaviour { delay_min: Duration::from_millis(100), ..usual };
        let hangs = SinkBehaviour { silent: 900_000, ..usual };
        self.world.set_sinks(if self.prng.chance(1, 2) { hangs } else { slow });
        let pause = self.millis(1, 60);
        self.run(pause)?;
        self.cut_off(self.primary);
        self.until_replaced()?;
        let stay = self.millis(0, 300);
        self.run(stay)?;
        self.mend();
        let stay = self.millis(100, 1_000);
        self.run(stay)?;
        self.world.set_sinks(usual);
        Ok(())
    }

    fn warp(&mut self) -> Played {
        let usual = self.world.config().sinks;
        let late = SinkBehaviour { late: 900_000, late_max: Duration::from_secs(3), ..usual };
        self.world.set_sinks(late);
        let pause = self.millis(100, 600);
        self.run(pause)?;
        // Past a probe's `settle`, and within what windows of sinks allow for where clocks are off.
        let leap = Duration::from_millis(4_500);
        let back = self.millis(5_000, 10_000);
        for replica in self.world.replicas() {
            self.world.inflict(Fault::Clock(replica, leap.as_nanos() as i64));
            self.world.inflict_after(back, Fault::Clock(replica, 0));
        }
        let stay = self.millis(500, 1_500);
        self.run(stay)?;
        self.world.set_sinks(usual);
        Ok(())
    }

    fn blackout(&mut self) -> Played {
        let usual = self.world.config().sinks;
        self.world.set_sinks(SinkBehaviour { act_silent: 1_000_000, ..SinkBehaviour::GOOD });
        let acts = self.world.acts();
        self.until(PATIENCE, move |world| acts < world.acts())?;
        let pause = self.millis(0, 50);
        self.run(pause)?;
        self.world.set_sinks(usual);
        let replicas = self.world.replicas();
        let outage = self.millis(BLACKOUT_MIN.as_millis() as u64, 40_000);
        let stood_still = self.prng.between(1, Quorums::of(replicas.len()).view_change as u64 - 1) as usize;
        // Views go round: the next one is led by the replica behind the primary.
        let behind =
            index(self.primary) + if self.prng.chance(1, 2) { 1 } else { self.prng.below(6) as usize };
        let first = behind % replicas.len();
        for (place, replica) in replicas.iter().copied().cycle().skip(first).take(replicas.len()).enumerate()
        {
            self.world.inflict(Fault::PowerOff(replica));
            let boot = self.millis(0, 1_500);
            self.world.inflict_after(outage + boot, Fault::Start(replica));
            if place < stood_still {
                self.world.inflict(Fault::Clock(replica, -(outage.as_nanos() as i64)));
                let set_right = self.millis(6_000, 15_000);
                self.world.inflict_after(outage + set_right, Fault::Clock(replica, 0));
            }
        }
        self.run(outage + Duration::from_secs(3))
    }

    fn hollow(&mut self, victim: ReplicaId) -> Played {
        let primary = self.primary;
        let Some(late) = self.others.iter().copied().find(|other| *other != victim) else { return Ok(()) };
        if victim == primary {
            return Ok(());
        }
        // One backup is away until the primary's log begins above its own.
        let Some(head) = self.world.replica(late).map(chronon_vsr::Replica::head) else { return Ok(()) };
        self.world.inflict(Fault::Kill(late));
        let left_behind =
            move |world: &World| world.replica(primary).is_some_and(|primary| head < primary.log_start());
        let waited = self.until(Duration::from_secs(2), left_behind)?;
        // The victim's next checkpoint finds no room; the primary's is what the other one fetches.
        let covered = self.world.checkpoints().durable(victim);
        let moment = move |world: &World| covered < world.checkpoints().durable(victim);
        if !waited || !self.until(PATIENCE, moment)? {
            self.world.inflict(Fault::Start(late));
            return Ok(());
        }
        let covered = self.world.checkpoints().durable(victim);
        self.world.inflict(Fault::DiskFull(victim, true));
        let ahead = move |world: &World| covered < world.checkpoints().durable(primary);
        self.until(PATIENCE, ahead)?;
        self.world.inflict(Fault::Start(late));
        let fetched = move |world: &World| covered < world.checkpoints().durable(late);
        if self.until(PATIENCE, fetched)? {
            self.world.inflict(Fault::Kill(victim));
            if let Some(covered) = covered {
                self.world.rot_entry(victim, covered.next());
            }
            self.kill(primary, 900, 1_900);
            self.world.inflict(Fault::Start(victim));
            // It is to follow: only then does it vote for what others prepare.
            let leads = |world: &World| world.leaders().next().is_some();
            if self.until(PATIENCE, leads)? && self.world.leaders().last() == Some(victim) {
                self.world.inflict(Fault::StepDown(victim));
            }
            self.run(Duration::from_millis(500))?;
        }
        self.world.inflict(Fault::DiskFull(victim, false));
        Ok(())
    }
}

/// What rots of the groups that were written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotten {
    /// The header of the group that was written so many groups before the last.
    Header,
    /// A bit of the body of one of the newest entries.
    Entry,
    /// Any bit.
    Anything,
}

impl World {
    /// One bit flips in what was written last to a WAL.
    pub(crate) fn rot_tail(&mut self, replica: ReplicaId, what: Rotten, which: u64) {
        let at = index(replica);
        let recent = self.machines[at].disk.recent();
        if recent.is_empty() || !self.may_be_damaged(replica) {
            return;
        }
        let recent = self.machines[at].disk.recent();
        let group = |back: usize| recent[recent.len() - 1 - back.min(recent.len() - 1)];
        let place = match what {
            Rotten::Header => group(which as usize).0 + self.prng.below(crate::UNIT as u64),
            Rotten::Anything => {
                let (position, length) = group((which % 4) as usize);
                position + self.prng.below(length)
            }
            Rotten::Entry => {
                let newest = self.commits.head().value();
                let op = Op::new(newest.saturating_sub(which % 4));
                let Some(place) = self.places_of(replica, op).pop() else { return };
                place
            }
        };
        self.note(Who::Fault, place, || format!("R{replica}'s WAL rots at {place}"));
        self.promises.on_damage(replica);
        self.machines[at].disk.flip(File::Wal, place, (which % 8) as u8);
    }

    /// A bit flips in every copy of an entry that a WAL has.
    pub(crate) fn rot_entry(&mut self, replica: ReplicaId, op: Op) {
        let places = self.places_of(replica, op);
        if places.is_empty() || !self.may_be_damaged(replica) {
            return;
        }
        self.note(Who::Fault, op.value(), || format!("R{replica}'s WAL rots at op {op}: {places:?}"));
        self.promises.on_damage(replica);
        for place in places {
            self.machines[index(replica)].disk.flip(File::Wal, place, 3);
        }
    }

    /// Where a WAL has the body of a committed entry.
    fn places_of(&self, replica: ReplicaId, op: Op) -> Vec<u64> {
        let committed = self.commits.get(op);
        committed.map_or_else(Vec::new, |committed| {
            self.machines[index(replica)].disk.find(File::Wal, committed.entry.body())
        })
    }

    /// A replica executes nothing for so long.
    pub(crate) fn rest_execution(&mut self, replica: ReplicaId, rest: Duration) {
        self.note(Who::Fault, 0x51, || format!("R{replica} executes nothing for {rest:?}"));
        self.machines[index(replica)].back_rests_until = self.now() + rest;
    }

    /// Who has begun a view and not left it, serving or not, by stamp.
    pub(crate) fn leaders(&self) -> impl Iterator<Item = ReplicaId> {
        let mut leaders: Vec<_> = self.machines.iter().filter(|machine| machine.is_running()).collect();
        leaders.retain(|machine| {
            machine.process.as_ref().is_some_and(|process| matches!(process.role, Role::Primary { .. }))
        });
        leaders
            .sort_by_key(|machine| machine.process.as_ref().map(|process| process.front.replica().stamp()));
        leaders.into_iter().map(|machine| machine.id)
    }

    /// How often sinks have acted.
    fn acts(&self) -> usize {
        self.sinks.values().map(|sink| sink.ledger().len()).sum()
    }

    /// How many views have begun.
    pub(crate) fn begun_views(&self) -> usize {
        self.events().iter().filter(|(_, _, event)| matches!(event, Event::PrimaryStarted { .. })).count()
    }
}
