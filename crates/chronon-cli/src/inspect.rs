//! `chronon inspect`: what a stopped or damaged data directory holds, what that means, and what to do.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chronon_storage::{
    ChainReport, CheckpointReport, CopyReport, Disk, File, Inspection, LogReport, OpenError, PackDamage,
    ReadOnlyDirectory, SuperblockReport, inspect,
};
use chronon_vsr::{OpRef, Stamp, Status};
use serde_json::{Value, json};

/// Bytes of a copy of the superblock, for telling where one lies.
const COPY_SIZE: usize = 16 * 1024;

/// The most ops that a line names.
const OPS_NAMED_MAX: usize = 8;

pub(crate) const EXIT_CODES: &str =
    "Exit code: 0 healthy, 1 can't be looked at, 2 damaged but a start mends it, 3 no start is possible.";

/// Look at the data directory of a stopped replica: what is there, what is damaged, what to do
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct InspectArguments {
    /// The data directory
    #[arg(long)]
    data: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Looks, and tells. Changes nothing.
pub(crate) fn run(arguments: &InspectArguments) -> anyhow::Result<ExitCode> {
    let directory = open(&arguments.data)?;
    let inspection = look(&directory, &mut directory.disk());
    let verdict = Verdict::of(&inspection);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&inspection, &verdict))?);
    } else {
        print!("{}", as_text(&arguments.data.display().to_string(), &inspection, &verdict));
    }
    Ok(verdict.health.exit_code())
}

/// Opens a data directory for reading, or says why that is not possible.
pub(crate) fn open(path: &Path) -> anyhow::Result<ReadOnlyDirectory> {
    ReadOnlyDirectory::open(path).map_err(|error| match error {
        OpenError::Locked { path } => anyhow::anyhow!(
            "{} is in use by a replica, and what is being written can't be judged: stop the replica first, or ask \
             the running one (`chronon status`)",
            path.display()
        ),
        OpenError::Missing { path } => {
            anyhow::anyhow!("{} holds no data of a replica: neither superblock nor wal", path.display())
        }
        error => anyhow::Error::new(error).context(format!("can't look at {}", path.display())),
    })
}

/// Reads everything that counts. What a start would refuse before it reads anything comes first.
pub(crate) fn look(directory: &ReadOnlyDirectory, disk: &mut dyn Disk) -> Inspection {
    let mut inspection = inspect(disk);
    if let Some(refusal) = directory.refusal() {
        inspection.refusal = Some(refusal);
    }
    inspection
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    /// Everything that counts is there.
    Healthy,
    /// Something is damaged, and the replica mends it once it runs.
    Mendable,
    /// A start refuses.
    Lost,
}

impl Health {
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Health::Healthy => 0,
            Health::Mendable => 2,
            Health::Lost => 3,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Mendable => "damaged",
            Health::Lost => "lost",
        }
    }
}

/// What an inspection means, and what to do about it, in sentences.
pub(crate) struct Verdict {
    pub(crate) health: Health,
    pub(crate) meaning: Vec<String>,
    advice: Vec<String>,
}

impl Verdict {
    pub(crate) fn of(inspection: &Inspection) -> Verdict {
        let mut verdict = Verdict { health: Health::Healthy, meaning: Vec::new(), advice: Vec::new() };
        if let Some(refusal) = &inspection.refusal {
            verdict.refused(refusal, inspection);
        }
        let damaged = inspection.copies.iter().filter(|copy| matches!(copy, CopyReport::Damaged(_))).count();
        // What makes a start refuse is said above, and no start writes anything anew.
        if 0 < damaged && inspection.superblock.is_some() && inspection.refusal.is_none() {
            verdict.is(
                Health::Mendable,
                format!("{damaged} of 4 copies of the superblock are damaged. Two are enough, and the next start writes all four anew."),
            );
        }
        if let Some(log) = &inspection.log {
            verdict.log(log, inspection.refusal.is_some(), is_alone(inspection));
        }
        if let Some(chain) = &inspection.chain {
            verdict.chain(chain, inspection);
        }
        for (file, why) in &inspection.unreadable {
            verdict.is(
                Health::Mendable,
                format!(
                    "{file} can't be opened ({why}). A start passes over it: what it held counts as missing."
                ),
            );
            verdict.advice.push(format!("Look at what {file} is. Nothing writes to it or removes it."));
        }
        let newest = inspection.checkpoints.iter().find(|checkpoint| checkpoint.op.is_some());
        for PackDamage { file, position, places } in &inspection.scarred {
            let others = match places {
                1 => String::new(),
                _ => format!(", and at {} places behind it", places - 1),
            };
            let cost = match newest {
                Some(newest) if newest.damage.is_empty() => ": nothing that the newest checkpoint needs",
                Some(_) | None => "",
            };
            verdict.is(
                Health::Mendable,
                format!("{file} was damaged after it was written: at byte {position} there is no header of a record any more{others}. What lay there counts as missing{cost}."),
            );
        }
        for checkpoint in &inspection.checkpoints {
            verdict.checkpoint(checkpoint, newest, is_alone(inspection));
        }
        match verdict.health {
            Health::Healthy => verdict.meaning.push("Everything that counts is there and right.".to_owned()),
            Health::Mendable => {
                let start = if is_alone(inspection) {
                    "Start the replica: it needs nothing of what is damaged."
                } else {
                    "Start the replica: what it needs it asks its peers for, and until then it vouches for nothing that it lost."
                };
                verdict.advice.insert(0, start.to_owned());
                verdict.advice.push("Then look at the disk itself (dmesg, smartctl): bytes do not change by themselves, and a disk that damaged some will damage more.".to_owned());
            }
            Health::Lost => {}
        }
        verdict
    }

    fn is(&mut self, health: Health, meaning: String) {
        self.health = self.health.max(health);
        self.meaning.push(meaning);
    }

    fn refused(&mut self, refusal: &OpenError, inspection: &Inspection) {
        self.is(Health::Lost, format!("The replica can't start from this directory: {refusal}."));
        match refusal {
            OpenError::FormatUnfinished => {
                self.advice.push(
                    "Nothing was ever kept here. Remove the directory and make it again (`chronon init`)."
                        .to_owned(),
                );
                return;
            }
            OpenError::FormatVersion { .. } => {
                self.advice.push(
                    "Nothing is wrong with the data. Start it with the release that wrote it.".to_owned(),
                );
                return;
            }
            OpenError::Disk { .. } => {
                self.advice.push("See to it that the files can be read (owner, permissions, the mount, the device), and look again.".to_owned());
                return;
            }
            _ => {}
        }
        self.advice.push(
            "Copy the directory away before anything else, damaged as it is: nothing else holds these bytes."
                .to_owned(),
        );
        let members =
            inspection.superblock.as_ref().map(|superblock| superblock.state.membership.voters.len());
        match members {
            Some(1) => self.advice.push("This is the only replica of its cluster, so what is lost here is lost. Recover the disk from the device itself, or go back to a backup.".to_owned()),
            members => {
                let others = members.map_or("the other replicas".to_owned(), |members| format!("the {} other replicas", members - 1));
                self.advice.push(format!("What was acknowledged is on {others}: as long as a majority of the cluster runs, nothing is lost and service goes on."));
                self.advice.push("Bring back the files themselves if you can (a mount that is missing, a device that can be read elsewhere). Never an older copy, and never a new directory under this identity: the peers refuse both, for they would take back what this replica has vouched for.".to_owned());
            }
        }
    }

    fn log(&mut self, log: &LogReport, refused: bool, alone: bool) {
        let lost_nothing = log.damage.iter().filter(|damage| damage.lost.as_ref().is_some_and(Vec::is_empty));
        let harmless = lost_nothing.count();
        if 0 < harmless {
            self.is(
                Health::Mendable,
                format!(
                    "{harmless} groups of the log have bad bytes that hold no entry: no op is lost by them."
                ),
            );
        }
        if !log.faulty.is_empty() {
            let ops = name_ops(log.faulty.iter().copied());
            self.is(Health::Mendable, format!("The log was damaged after it was written: {ops} can't be read here any more, and are known by name and checksum."));
        }
        if let Some(op) = log.uncertain_from {
            let until = if refused {
                ""
            } else {
                " The replica will not vote about it before it has heard from the primary."
            };
            self.is(
                Health::Mendable,
                format!("Nobody can tell from this directory what the log held from op {op} on.{until}"),
            );
        }
        if log.ends_early {
            self.is(Health::Mendable, "The log ends before what the superblock knows to have been flushed: the wal is an older copy, was written over, or its device lost what it had confirmed.".to_owned());
        }
        if let Some(position) = log.foreign {
            self.is(Health::Mendable, format!("The wal holds what another data directory wrote, a group of it at byte {position}: superblock and wal do not belong together."));
            self.advice.push("Put back the file that belongs here, if there is one: one of the two was copied from another replica or from another time.".to_owned());
        } else if let Some((position, units)) = log.stray {
            let cost = if log.complete {
                "that hold nothing any more: nothing is lost, but the disk damages data"
            } else {
                "in which no group is found any more: what they held can't be told"
            };
            self.is(
                Health::Mendable,
                format!("{units} units of 512 bytes are bad in parts of the wal, the first at byte {position}, {cost}."),
            );
        }
        if !log.torn.is_empty() {
            let known = if alone {
                ""
            } else {
                "; peers know what this replica had confirmed, and refuse it if that is gone"
            };
            self.meaning.push(format!("The last write is not whole. A crash in the middle of it looks like that, and then it had not been acknowledged: no damage. A tail that was zeroed later looks the same, and nothing here tells the two apart{known}."));
        }
    }

    fn chain(&mut self, chain: &ChainReport, inspection: &Inspection) {
        if let Some(op) = chain.broken {
            self.is(
                Health::Lost,
                format!(
                    "Op {op} is not the child of the op before it: two logs were mixed in this directory."
                ),
            );
            self.advice.push(
                "Keep the directory as it is and report this: no crash and no disk does it.".to_owned(),
            );
        }
        if chain.status == Status::Halted {
            self.is(Health::Lost, "The superblock and the log contradict one another, or the only copy of an op is gone: a replica that starts from them takes part in nothing.".to_owned());
            self.advice
                .push("Copy the directory away. The other replicas go on without this one.".to_owned());
        }
        let faulty = inspection.log.as_ref().map_or(&[][..], |log| &log.faulty);
        let also: Vec<OpRef> = chain.missing.iter().filter(|op| !faulty.contains(op)).copied().collect();
        if !also.is_empty() {
            // After a crash in the middle of a view change, or before a repair was done: nothing rotted.
            let asks = if is_alone(inspection) { "" } else { ", and it asks its peers for them" };
            self.meaning.push(format!("The log names {} without holding them: they were on their way when the replica stopped{asks}.", name_ops(also)));
        }
        if 0 < chain.unnamed {
            let asks =
                if is_alone(inspection) { "" } else { ", and the replica asks its peers for the names" };
            self.meaning.push(format!(
                "{} ops below are not even known by name: the hash chain is interrupted{asks}.",
                chain.unnamed
            ));
        }
    }

    fn checkpoint(&mut self, checkpoint: &CheckpointReport, newest: Option<&CheckpointReport>, alone: bool) {
        if checkpoint.damage.is_empty() {
            return;
        }
        let count = checkpoint.damage.len();
        match checkpoint.op {
            Some(op) if alone => {
                self.is(Health::Lost, format!("{count} chunks of the checkpoint at op {op} are damaged or missing, and this is the only replica: its state can't be built."));
                self.advice.push("Copy the directory away, and go back to a backup.".to_owned());
            }
            Some(op) => self.is(Health::Mendable, format!("{count} chunks of the checkpoint at op {op} are damaged or missing. The replica fetches them from its peers before it executes anything.")),
            None => self.older_checkpoint(checkpoint, newest, alone),
        }
    }

    fn older_checkpoint(&mut self, older: &CheckpointReport, newest: Option<&CheckpointReport>, alone: bool) {
        let (root, count) = (older.root, older.damage.len());
        let what = match older.chunks {
            Some(_) => format!("{count} of its chunks are damaged or missing"),
            None => "the list of its chunks can't be read".to_owned(),
        };
        let beside = newest.and_then(|newest| newest.op).map_or(String::new(), |op| {
            format!(", one beside the newest at op {op}: the checkpoint before it, or a backup")
        });
        let cost = match newest {
            Some(newest) if newest.damage.is_empty() => "Nothing is lost while the newest is whole, as it is",
            Some(_) => "The newest is not whole either: see above",
            None => "No start needs it",
        };
        self.is(Health::Mendable, format!("The checkpoint {root} is incomplete ({what}){beside}. {cost}."));
        let advice = if alone {
            "For an older checkpoint there is nothing to mend: later ones take its place. As nobody else has this state, take a backup once the replica runs (`chronon backup`)."
        } else {
            "For an older checkpoint there is nothing to mend: later ones take its place."
        };
        if !self.advice.iter().any(|given| given == advice) {
            self.advice.push(advice.to_owned());
        }
    }
}

fn is_alone(inspection: &Inspection) -> bool {
    let superblock = inspection.superblock.as_ref();
    superblock.is_some_and(|superblock| superblock.state.membership.voters.len() == 1)
}

/// `op 7`, `ops 3, 4 and 9`, `1,204 ops between 3 and 5000`.
pub(crate) fn name_ops(ops: impl IntoIterator<Item = OpRef>) -> String {
    let mut ops: Vec<u64> = ops.into_iter().map(|op| op.op.value()).collect();
    ops.sort_unstable();
    ops.dedup();
    match ops.as_slice() {
        [] => "no ops".to_owned(),
        [op] => format!("op {op}"),
        [first, .., last] if OPS_NAMED_MAX < ops.len() => {
            format!("{} ops between {first} and {last}", ops.len())
        }
        [before @ .., last] => {
            let before: Vec<String> = before.iter().map(u64::to_string).collect();
            format!("ops {} and {last}", before.join(", "))
        }
    }
}

pub(crate) fn name_stamp(stamp: Stamp) -> String {
    format!("epoch {} view {}", stamp.epoch, stamp.view)
}

fn as_text(path: &str, inspection: &Inspection, verdict: &Verdict) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut text, path, inspection, verdict);
    text
}

fn write_all(text: &mut String, path: &str, inspection: &Inspection, verdict: &Verdict) -> std::fmt::Result {
    writeln!(text, "{path}: {}\n", verdict.health.name())?;
    for (file, size) in inspection.sizes {
        match size {
            Some(size) => writeln!(text, "{file}: {size} bytes")?,
            None => writeln!(text, "{file}: no bytes can be read of it")?,
        }
    }
    writeln!(text, "\nsuperblock")?;
    for (index, copy) in inspection.copies.iter().enumerate() {
        let at = index * COPY_SIZE;
        write!(text, "  copy {index}, from byte {at}: ")?;
        match copy {
            CopyReport::Chosen { sequence } => writeln!(text, "good, sequence {sequence}")?,
            CopyReport::Other { sequence } => {
                writeln!(text, "good, sequence {sequence}: of another write, which a crash interrupted")?;
            }
            CopyReport::OtherVersion { found } => writeln!(text, "good, of format {found}")?,
            CopyReport::Damaged(fault) => writeln!(text, "damaged: it {fault}")?,
        }
    }
    if let Some(superblock) = &inspection.superblock {
        write_superblock(text, superblock)?;
    }
    if let Some(log) = &inspection.log {
        write_log(text, log, inspection.chain.as_ref())?;
    }
    if inspection.superblock.is_some() {
        write_checkpoints(text, inspection)?;
    }
    for (head, sentences) in [("what it means", &verdict.meaning), ("what to do", &verdict.advice)] {
        if !sentences.is_empty() {
            writeln!(text, "\n{head}")?;
            sentences.iter().try_for_each(|sentence| writeln!(text, "  - {sentence}"))?;
        }
    }
    Ok(())
}

fn write_superblock(text: &mut String, superblock: &SuperblockReport) -> std::fmt::Result {
    let SuperblockReport { identity, incarnation, state, .. } = superblock;
    let voters: Vec<String> = state.membership.voters.iter().map(|voter| voter.replica.to_string()).collect();
    writeln!(
        text,
        "  replica {} of cluster {:032x}, on disk {:032x}; voters {}",
        identity.replica,
        identity.cluster.value(),
        identity.disk.value(),
        voters.join(", ")
    )?;
    writeln!(
        text,
        "  opened {incarnation} times; promised to {}, log of {}",
        name_stamp(state.stamp),
        name_stamp(state.log_stamp.stamp())
    )?;
    writeln!(
        text,
        "  committed through op {}, checkpoint at op {}",
        state.commit_max.op, state.checkpoint.entry.op
    )?;
    if !state.faulty.is_empty() {
        writeln!(text, "  marked as damaged: {}", name_ops(state.faulty.iter().copied()))?;
    }
    if let Some(op) = state.uncertain_from {
        writeln!(text, "  marked as uncertain: from op {op} on")?;
    }
    Ok(())
}

fn write_log(text: &mut String, log: &LogReport, chain: Option<&ChainReport>) -> std::fmt::Result {
    writeln!(text, "\nlog")?;
    let ops = log.ops.map_or(String::new(), |(first, last)| format!(" between op {first} and op {last}"));
    writeln!(text, "  {} groups in {} bytes, {} entries{ops}", log.groups, log.bytes, log.entries)?;
    if let Some(chain) = chain {
        writeln!(
            text,
            "  chain from op {} to op {}: {} entries here and linked, {} damaged or not here, {} not known by name",
            chain.start,
            chain.head,
            chain.linked,
            chain.missing.len(),
            chain.unnamed
        )?;
    }
    if 0 < log.unevidenced {
        writeln!(
            text,
            "  {} entries without proof that they were flushed: a start flushes them again",
            log.unevidenced
        )?;
    }
    if let Some(first) = log.damage.iter().map(|damage| damage.first_bad).min() {
        writeln!(text, "  first damage at byte {first} of the wal")?;
    }
    for damage in log.damage.iter().take(OPS_NAMED_MAX) {
        let lost = match &damage.lost {
            None => "what it held is unknown".to_owned(),
            Some(lost) if lost.is_empty() => "no entry is lost by it".to_owned(),
            Some(lost) => format!("cost {}", name_ops(lost.iter().copied())),
        };
        writeln!(
            text,
            "  bytes {} to {} of the wal: a group with bad bytes from {} on; {lost}",
            damage.position,
            damage.position + damage.length - 1,
            damage.first_bad
        )?;
    }
    if OPS_NAMED_MAX < log.damage.len() {
        writeln!(text, "  and {} more groups", log.damage.len() - OPS_NAMED_MAX)?;
    }
    if let Some(position) = log.unreadable_tail {
        writeln!(text, "  byte {position} of the wal: what may have been the newest group can't be read")?;
    }
    if log.ends_early {
        writeln!(text, "  ends before what the superblock knows to have been flushed")?;
    }
    if let Some((position, units)) = log.stray {
        writeln!(
            text,
            "  byte {position} of the wal: {units} bad units in parts {}",
            if log.complete { "that hold nothing any more" } else { "in which no group is found any more" }
        )?;
    }
    for position in &log.torn {
        writeln!(text, "  byte {position} of the wal: a write that a crash interrupted")?;
    }
    Ok(())
}

fn write_checkpoints(text: &mut String, inspection: &Inspection) -> std::fmt::Result {
    writeln!(text, "\ncheckpoints")?;
    let packs = inspection.packs;
    writeln!(text, "  {} packs of {} bytes", packs.packs, packs.bytes)?;
    for PackDamage { file, position, places } in &inspection.scarred {
        let places = if *places == 1 { String::new() } else { format!(", the first of {places} places") };
        writeln!(text, "  {file}, byte {position}: the header of a record is damaged{places}")?;
    }
    if inspection.checkpoints.is_empty() {
        let none = if inspection.scarred.is_empty() { "none was taken yet" } else { "none can be read" };
        return writeln!(text, "  {none}");
    }
    for checkpoint in &inspection.checkpoints {
        let which = checkpoint.op.map_or("an older one".to_owned(), |op| format!("at op {op}"));
        let chunks = match checkpoint.chunks {
            Some(chunks) => format!("{chunks} chunks"),
            None => "its list of chunks can't be read".to_owned(),
        };
        let whole = if checkpoint.damage.is_empty() { ", all there" } else { "" };
        writeln!(text, "  {which}, root {}: {chunks}{whole}", checkpoint.root)?;
        for damage in checkpoint.damage.iter().take(OPS_NAMED_MAX) {
            writeln!(text, "    {damage}")?;
        }
        if OPS_NAMED_MAX < checkpoint.damage.len() {
            writeln!(text, "    and {} more", checkpoint.damage.len() - OPS_NAMED_MAX)?;
        }
    }
    Ok(())
}

fn as_json(inspection: &Inspection, verdict: &Verdict) -> Value {
    let op = |op: &OpRef| json!({ "op": op.op.value(), "checksum": op.checksum.to_string() });
    let stamp = |stamp: Stamp| json!({ "epoch": stamp.epoch.value(), "view": stamp.view.value() });
    let copies: Vec<Value> = inspection
        .copies
        .iter()
        .enumerate()
        .map(|(index, copy)| {
            let (state, sequence, fault) = match copy {
                CopyReport::Chosen { sequence } => ("good", Some(*sequence), None),
                CopyReport::Other { sequence } => ("other_write", Some(*sequence), None),
                CopyReport::OtherVersion { found } => {
                    ("other_format", None, Some(format!("is of format {found}")))
                }
                CopyReport::Damaged(fault) => ("damaged", None, Some(fault.to_string())),
            };
            json!({ "position": index * COPY_SIZE, "state": state, "sequence": sequence, "fault": fault })
        })
        .collect();
    let superblock = inspection.superblock.as_ref().map(|superblock| {
        let SuperblockReport { identity, state, .. } = superblock;
        json!({
            "sequence": superblock.sequence,
            "cluster": format!("{:032x}", identity.cluster.value()),
            "replica": identity.replica.value(),
            "disk": format!("{:032x}", identity.disk.value()),
            "voters": state.membership.voters.iter().map(|voter| voter.replica.value()).collect::<Vec<u8>>(),
            "incarnation": superblock.incarnation.value(),
            "stamp": stamp(state.stamp),
            "log_stamp": stamp(state.log_stamp.stamp()),
            "commit_max": op(&state.commit_max),
            "checkpoint": op(&state.checkpoint.entry),
            "faulty": state.faulty.iter().map(op).collect::<Vec<Value>>(),
            "uncertain_from": state.uncertain_from.map(chronon_vsr::Op::value),
        })
    });
    let log = inspection.log.as_ref().map(|log| {
        let damage: Vec<Value> = log
            .damage
            .iter()
            .map(|damage| {
                json!({
                    "position": damage.position,
                    "length": damage.length,
                    "first_bad": damage.first_bad,
                    "lost": damage.lost.as_ref().map(|lost| lost.iter().map(op).collect::<Vec<Value>>()),
                })
            })
            .collect();
        json!({
            "groups": log.groups,
            "bytes": log.bytes,
            "entries": log.entries,
            "ops": log.ops.map(|(first, last)| [first.value(), last.value()]),
            "faulty": log.faulty.iter().map(op).collect::<Vec<Value>>(),
            "unevidenced": log.unevidenced,
            "damage": damage,
            "torn": log.torn,
            "unreadable_tail": log.unreadable_tail,
            "ends_early": log.ends_early,
            "foreign": log.foreign,
            "stray_damage": log.stray.map(|(position, units)| json!({ "position": position, "units": units })),
            "complete": log.complete,
            "uncertain_from": log.uncertain_from.map(chronon_vsr::Op::value),
        })
    });
    let chain = inspection.chain.as_ref().map(|chain| {
        json!({
            "start": chain.start.value(),
            "commit_max": op(&chain.commit_max),
            "head": chain.head.value(),
            "linked": chain.linked,
            "missing": chain.missing.iter().map(op).collect::<Vec<Value>>(),
            "unnamed": chain.unnamed,
            "broken": chain.broken.map(chronon_vsr::Op::value),
        })
    });
    let checkpoints: Vec<Value> = inspection
        .checkpoints
        .iter()
        .map(|checkpoint| {
            json!({
                "op": checkpoint.op.map(chronon_vsr::Op::value),
                "root": checkpoint.root.to_string(),
                "chunks": checkpoint.chunks,
                "damage": checkpoint.damage.iter().map(ToString::to_string).collect::<Vec<String>>(),
            })
        })
        .collect();
    let size =
        |wanted: File| inspection.sizes.iter().find(|(file, _)| *file == wanted).and_then(|(_, size)| *size);
    json!({
        "health": verdict.health.name(),
        "superblock_size": size(File::Superblock),
        "wal_size": size(File::Wal),
        "copies": copies,
        "superblock": superblock,
        "log": log,
        "chain": chain,
        "checkpoints": checkpoints,
        "packs": {
            "count": inspection.packs.packs,
            "bytes": inspection.packs.bytes,
            "damaged": inspection.scarred.iter().map(|PackDamage { file, position, places }| {
                json!({ "file": file.name(), "position": position, "places": places })
            }).collect::<Vec<Value>>(),
            "unreadable": inspection.unreadable.iter().map(|(file, _)| file.name()).collect::<Vec<String>>(),
        },
        "refusal": inspection.refusal.as_ref().map(ToString::to_string),
        "meaning": verdict.meaning,
        "advice": verdict.advice,
    })
}
