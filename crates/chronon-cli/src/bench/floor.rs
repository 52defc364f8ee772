//! The floor: no commit can be faster than the flush and the round trip that it needs.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::{Latencies, histogram, record};
use crate::children::OwnChild;
use crate::local::free_ports;
use crate::output::table;

/// What is written before each flush: a small group.
const WRITE: usize = 4096;
/// The zero-filled file.
const FILE: u64 = 32 * 1024 * 1024;
/// What goes over loopback and back.
const MESSAGE: usize = 256;
/// How long the other process may take to listen.
const START_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FloorArguments {
    /// Where to write: a directory on the disk to be measured
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Flushes, and round trips, of each row
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Floor {
    fdatasync_alone: Latencies,
    fdatasync_three_writers: Latencies,
    loopback_round_trip: Latencies,
}

pub(super) fn run(arguments: &FloorArguments) -> anyhow::Result<ExitCode> {
    let floor = super::in_directory(&arguments.dir, |directory| measure(directory, arguments.count))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&floor)?);
    } else {
        println!("{}", floor.table());
    }
    Ok(ExitCode::SUCCESS)
}

impl Floor {
    fn table(&self) -> String {
        let row = |name: &str, latencies: &Latencies| {
            let mut row = vec![name.to_owned()];
            row.extend(latencies.cells());
            row
        };
        table(&[
            ["floor", "count", "p50 µs", "p99 µs", "max µs"].map(str::to_owned).to_vec(),
            row("fdatasync after 4 KiB, alone", &self.fdatasync_alone),
            row("fdatasync after 4 KiB, three writers", &self.fdatasync_three_writers),
            row("loopback round trip between processes", &self.loopback_round_trip),
        ])
    }

    /// Three times (a flush among three writers and two round trips): the bar for one client's median.
    pub(super) fn bar_us(&self) -> u64 {
        3 * (self.fdatasync_three_writers.p50_us + 2 * self.loopback_round_trip.p50_us)
    }
}

/// Measures the floor in a directory of the caller's.
pub(super) fn measure(directory: &Path, count: u32) -> anyhow::Result<Floor> {
    Ok(Floor {
        fdatasync_alone: flushes(directory, 1, count)?,
        fdatasync_three_writers: flushes(directory, 3, count)?,
        loopback_round_trip: round_trips(directory, count)?,
    })
}

fn flushes(directory: &Path, writers: u32, count: u32) -> anyhow::Result<Latencies> {
    let files = (0..writers)
        .map(|writer| zero_filled(&directory.join(format!("flush-{writer}"))))
        .collect::<anyhow::Result<Vec<File>>>()?;
    let barrier = std::sync::Barrier::new(files.len());
    let mut all = histogram();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let writers: Vec<_> = files
            .iter()
            .map(|file| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    flush_again_and_again(file, count)
                })
            })
            .collect();
        for writer in writers {
            all.add(writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??)?;
        }
        Ok(())
    })?;
    Ok(Latencies::of(&all))
}

fn flush_again_and_again(file: &File, count: u32) -> anyhow::Result<hdrhistogram::Histogram<u64>> {
    let mut latencies = histogram();
    for number in 0..u64::from(count) {
        let block = [number as u8 | 1; WRITE];
        let began = Instant::now();
        file.write_all_at(&block, number * WRITE as u64 % FILE)?;
        file.sync_data()?;
        record(&mut latencies, began.elapsed());
    }
    Ok(latencies)
}

fn zero_filled(path: &Path) -> anyhow::Result<File> {
    let opened = OpenOptions::new().create(true).truncate(true).write(true).open(path);
    let mut file = opened.with_context(|| format!("can't make {}", path.display()))?;
    let zeros = vec![0; 1024 * 1024];
    for _ in 0..FILE / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn round_trips(directory: &Path, count: u32) -> anyhow::Result<Latencies> {
    let address = free_ports(1)?[0];
    let listen = address.to_string();
    let _echo = OwnChild::start(&["internal-echo", "--listen", &listen], &directory.join("echo.log"))?;
    let mut stream = connect(address)?;
    stream.set_nodelay(true)?;
    let mut latencies = histogram();
    let mut message = [7; MESSAGE];
    for _ in 0..count {
        let began = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        record(&mut latencies, began.elapsed());
    }
    Ok(Latencies::of(&latencies))
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let began = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) if START_PATIENCE < began.elapsed() => return Err(error).context("no echo process"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The other process of the round trips: sends back what it hears, on one connection.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EchoArguments {
    #[arg(long)]
    listen: SocketAddr,
}

pub(crate) fn run_echo(arguments: &EchoArguments) -> anyhow::Result<()> {
    anyhow::ensure!(arguments.listen.ip() == Ipv4Addr::LOCALHOST, "the echo process serves loopback only");
    let (mut stream, _) = TcpListener::bind(arguments.listen)?.accept()?;
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
    }
}
