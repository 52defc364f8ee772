//! `chronon log`: checks and shows the log of a stopped replica.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use chronon_storage::{Disk, File, ReadOnlyDisk, replica_at_rest};
use chronon_vsr::{Op, Standing};
use serde_json::{Value, json};

use crate::inspect::{EXIT_CODES, Verdict, look, name_ops, name_stamp, open};
use crate::output::{Progress, table};

/// The log of a stopped replica
#[derive(Debug, clap::Subcommand)]
pub(crate) enum LogCommand {
    /// Read every byte, and check every checksum and the hash chain from the oldest op to the newest
    #[command(after_help = EXIT_CODES)]
    Verify(VerifyArguments),
    /// List ops: when and under whom each was born, and its size
    Show(ShowArguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArguments {
    /// The data directory
    #[arg(long)]
    data: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArguments {
    /// The data directory
    #[arg(long)]
    data: PathBuf,
    /// The first op; the oldest that is there unless given
    #[arg(long)]
    from: Option<u64>,
    /// At most so many
    #[arg(long, default_value_t = 20)]
    limit: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Carries out a command on the log.
pub(crate) fn run(command: &LogCommand) -> anyhow::Result<ExitCode> {
    match command {
        LogCommand::Verify(arguments) => verify(arguments),
        LogCommand::Show(arguments) => show(arguments),
    }
}

fn verify(arguments: &VerifyArguments) -> anyhow::Result<ExitCode> {
    let directory = open(&arguments.data)?;
    let mut disk = Counted::new(directory.disk())?;
    let inspection = look(&directory, &mut disk);
    let read = disk.read;
    drop(disk);
    let verdict = Verdict::of(&inspection);
    let chain = inspection.chain.as_ref();
    if arguments.json {
        let told = json!({
            "health": verdict.health.name(),
            "bytes_read": read,
            "from": chain.map(|chain| chain.start.value()),
            "to": chain.map(|chain| chain.head.value()),
            "linked": chain.map(|chain| chain.linked),
            "missing": chain.map(|chain| chain.missing.iter().map(|op| op.op.value()).collect::<Vec<u64>>()),
            "broken": chain.and_then(|chain| chain.broken).map(Op::value),
            "meaning": verdict.meaning,
        });
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(verdict.health.exit_code());
    }
    println!("read {read} bytes");
    if let Some(chain) = chain {
        match chain.head < chain.start {
            true => println!("the log is empty"),
            false => println!(
                "op {} to op {}: {} entries are here with the right checksums, each linked to the one before",
                chain.start, chain.head, chain.linked
            ),
        }
        if !chain.missing.is_empty() {
            println!("damaged or not here: {}", name_ops(chain.missing.iter().copied()));
        }
    }
    verdict.meaning.iter().for_each(|sentence| println!("{sentence}"));
    if verdict.health.exit_code() != ExitCode::SUCCESS {
        println!("what to do: chronon inspect --data {}", arguments.data.display());
    }
    Ok(verdict.health.exit_code())
}

fn show(arguments: &ShowArguments) -> anyhow::Result<ExitCode> {
    let ShowArguments { data, from, limit, json } = arguments;
    let directory = open(data)?;
    let replica = directory.refusal().map_or_else(|| replica_at_rest(&mut directory.disk()), Err);
    let replica = replica
        .with_context(|| format!("the log in {} can't be read; chronon inspect says more", data.display()))?;
    let first = from.map_or(replica.log_start(), Op::new).max(replica.log_start());
    let ops = (first.value()..=replica.head().value()).take(usize::try_from(*limit).unwrap_or(usize::MAX));
    let committed = replica.commit_max().op;
    let rows: Vec<Value> = ops
        .map(|op| {
            let mut row = json!({ "op": op, "committed": op <= committed.value() });
            let known = match replica.standing(Op::new(op)) {
                Standing::Held(entry) => {
                    let header = entry.header();
                    row["born"] = name_stamp(header.born).into();
                    row["time_ns"] = header.timestamp.nanos().into();
                    row["bytes"] = header.body_size.into();
                    row["checksum"] = entry.checksum().to_string().into();
                    "here"
                }
                Standing::Named(name) => {
                    row["checksum"] = name.checksum.to_string().into();
                    "damaged or not here"
                }
                Standing::Unknown => "not known by name",
            };
            row["state"] = known.into();
            row
        })
        .collect();
    if *json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({ "ops": rows, "head": replica.head().value() }))?
        );
        return Ok(ExitCode::SUCCESS);
    }
    let keys = ["op", "committed", "born", "time_ns", "bytes", "checksum", "state"];
    let mut lines = vec![keys.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        keys.iter()
            .map(|key| match &row[key] {
                Value::Null => "-".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })
            .collect()
    }));
    print!("{}", table(&lines));
    Ok(ExitCode::SUCCESS)
}

/// A disk that shows how far reading it has come.
struct Counted {
    disk: ReadOnlyDisk,
    read: u64,
    all: u64,
    progress: Progress,
}

impl Counted {
    fn new(mut disk: ReadOnlyDisk) -> anyhow::Result<Counted> {
        let files: Vec<File> =
            File::FIXED.into_iter().chain(disk.packs()?.into_iter().map(File::Pack)).collect();
        let sizes = files.into_iter().map(|file| disk.size(file).unwrap_or(0));
        let all = sizes.sum();
        Ok(Counted { disk, read: 0, all, progress: Progress::new(100) })
    }
}

impl Disk for Counted {
    fn read(&mut self, file: File, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        let result = self.disk.read(file, position, buffer);
        self.read += if result.is_ok() { buffer.len() as u64 } else { 0 };
        self.progress.reading(self.read.min(self.all), self.all);
        result
    }

    fn write(&mut self, file: File, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(file, position, bytes)
    }

    fn flush(&mut self, file: File) -> io::Result<()> {
        self.disk.flush(file)
    }

    fn size(&mut self, file: File) -> io::Result<u64> {
        self.disk.size(file)
    }

    fn truncate(&mut self, file: File, size: u64) -> io::Result<()> {
        self.disk.truncate(file, size)
    }

    fn punch(&mut self, file: File, position: u64, length: u64) -> io::Result<()> {
        self.disk.punch(file, position, length)
    }

    fn remove(&mut self, file: File) -> io::Result<()> {
        self.disk.remove(file)
    }

    fn packs(&mut self) -> io::Result<Vec<u64>> {
        self.disk.packs()
    }

    fn reserve(&mut self, file: File, bytes: u64) -> io::Result<()> {
        self.disk.reserve(file, bytes)
    }

    fn available(&mut self) -> io::Result<u64> {
        self.disk.available()
    }
}
