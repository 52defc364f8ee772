//! Real processes on loopback, ended by us alone.
#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests; each test uses some of them")]

pub(crate) mod accounts;
pub(crate) mod receiver;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use chronon_client::{Connection, ConnectionLimits};
use chronon_vsr::{ClusterId, Prng};
use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the command line to its end.
pub(crate) fn chronon(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chronon")).args(arguments).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory of its own, removed unless its test fails.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Directory {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

/// How many processes were started for something in this directory.
pub(crate) fn processes_in(directory: &Path) -> usize {
    let directory = directory.to_str().unwrap();
    let commands = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let command = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&command).into_owned())
    });
    commands.filter(|command| command.contains("internal-") && command.contains(directory)).count()
}

/// Waits until there are so many of them.
pub(crate) fn until_processes(directory: &Path, count: usize) {
    let began = Instant::now();
    while processes_in(directory) != count {
        let seen = processes_in(directory);
        assert!(began.elapsed() < PATIENCE, "{seen} processes, and not {count}");
        // sleeps: between two looks at the processes there are.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Free ports below the range that ports of outgoing connections are drawn from: one of those could take the port of a
/// replica that is down for a moment.
pub(crate) fn free_ports(count: usize) -> Vec<u16> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut prng = Prng::new(since.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(32));
    let mut listeners = Vec::new();
    while listeners.len() < count {
        let port = u16::try_from(prng.between(10_000, 32_000)).unwrap();
        listeners.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    }
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// A cluster that `chronon init` made, on free ports.
pub(crate) struct Cluster {
    pub(crate) directory: Directory,
    replicas: Vec<Replica>,
}

struct Replica {
    config: String,
    peer: String,
    client: String,
    http: String,
    child: Option<Child>,
}

impl Cluster {
    /// Makes a cluster; nothing runs yet.
    pub(crate) fn init(name: &str, replicas: usize) -> Cluster {
        Cluster::with_log(name, replicas, 32)
    }

    /// Makes a cluster whose log has so many MiB; nothing runs yet.
    pub(crate) fn with_log(name: &str, replicas: usize, log_mib: u64) -> Cluster {
        Cluster::made(name, replicas, &["init", "--log-mib", &log_mib.to_string()])
    }

    /// Makes a cluster from a backup; nothing runs yet.
    pub(crate) fn restored(name: &str, replicas: usize, backup: &str) -> Cluster {
        Cluster::made(name, replicas, &["restore", "--from", backup, "--log-mib", "32"])
    }

    fn made(name: &str, replicas: usize, by: &[&str]) -> Cluster {
        let directory = Directory::new(name);
        let dir = directory.path("cluster");
        let count = replicas.to_string();
        let made = chronon(&[by, &["--replicas", &count, "--dir", &dir]].concat());
        assert!(made.status.success(), "{}", stderr(&made));
        let ports = free_ports(replicas * 3);
        let port = |place: usize| ports[place];
        let replicas = (0..replicas)
            .map(|replica| {
                let config = format!("{dir}/replica-{replica}/chronon.toml");
                let mut text = std::fs::read_to_string(&config).unwrap();
                for place in 0..replicas * 3 {
                    let given = 7_100 + place / 3 * 10 + place % 3;
                    text = text
                        .replace(&format!("127.0.0.1:{given}\""), &format!("127.0.0.1:{}\"", port(place)));
                }
                std::fs::write(&config, text).unwrap();
                Replica {
                    config,
                    peer: format!("127.0.0.1:{}", port(replica * 3)),
                    client: format!("127.0.0.1:{}", port(replica * 3 + 1)),
                    http: format!("http://127.0.0.1:{}", port(replica * 3 + 2)),
                    child: None,
                }
            })
            .collect();
        Cluster { directory, replicas }
    }

    pub(crate) fn started(name: &str, replicas: usize) -> Cluster {
        let mut cluster = Cluster::init(name, replicas);
        (0..replicas).for_each(|replica| cluster.start(replica));
        cluster
    }

    pub(crate) fn len(&self) -> usize {
        self.replicas.len()
    }

    pub(crate) fn config(&self, replica: usize) -> &str {
        &self.replicas[replica].config
    }

    /// A replica's data directory.
    pub(crate) fn data(&self, replica: usize) -> PathBuf {
        Path::new(self.config(replica)).with_file_name("data")
    }

    /// The cluster's identity.
    pub(crate) fn id(&self) -> ClusterId {
        let text = std::fs::read_to_string(self.config(0)).unwrap();
        let id =
            text.lines().find_map(|line| line.strip_prefix("cluster = \"")).unwrap().trim_end_matches('"');
        ClusterId::new(u128::from_str_radix(id, 16).unwrap())
    }

    /// Where a replica listens for others.
    pub(crate) fn peer(&self, replica: usize) -> &str {
        &self.replicas[replica].peer
    }

    /// Where a replica's HTTP API is, without a scheme.
    pub(crate) fn http(&self, replica: usize) -> &str {
        self.replicas[replica].http.strip_prefix("http://").unwrap()
    }

    pub(crate) fn clients(&self) -> Vec<String> {
        self.replicas.iter().map(|replica| replica.client.clone()).collect()
    }

    pub(crate) fn api_of(&self, replica: usize) -> &str {
        &self.replicas[replica].http
    }

    pub(crate) fn api(&self) -> String {
        self.replicas.iter().map(|replica| replica.http.clone()).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn start(&mut self, replica: usize) {
        self.start_as(replica, &["start"]);
    }

    /// Starts a replica by this command, which is then given its configuration.
    pub(crate) fn start_as(&mut self, replica: usize, command: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path(replica)).unwrap();
        let Replica { config, child, .. } = &mut self.replicas[replica];
        // An internal one ends when its standard input does.
        let internal = command.iter().any(|word| word.starts_with("internal"));
        let started = Command::new(env!("CARGO_BIN_EXE_chronon"))
            .args(command)
            .args(["--config", config])
            .stdin(if internal { Stdio::piped() } else { Stdio::null() })
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        *child = Some(started);
    }

    /// Starts a replica whose output nobody reads: both of its pipes are closed at once.
    pub(crate) fn start_unread(&mut self, replica: usize) {
        let Replica { config, child, .. } = &mut self.replicas[replica];
        let mut command = Command::new(env!("CARGO_BIN_EXE_chronon"));
        command.args(["start", "--config", config]).stdin(Stdio::null());
        let mut started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop((started.stdout.take(), started.stderr.take()));
        *child = Some(started);
    }

    fn log_path(&self, replica: usize) -> PathBuf {
        self.directory.0.join(format!("replica-{replica}.log"))
    }

    /// What a replica has printed, over all its lives.
    pub(crate) fn printed(&self, replica: usize) -> String {
        std::fs::read_to_string(self.log_path(replica)).unwrap_or_default()
    }

    /// Whether a replica has ended by itself, and if so with which code.
    pub(crate) fn ended(&mut self, replica: usize) -> Option<i32> {
        let status = self.replicas[replica].child.as_mut()?.try_wait().unwrap()?;
        self.replicas[replica].child = None;
        Some(status.code().expect("nobody killed it"))
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, replica: usize) {
        let mut child = self.replicas[replica].child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and whether it ended well.
    pub(crate) fn terminate(&mut self, replica: usize) -> bool {
        self.signal(replica, Signal::TERM);
        self.replicas[replica].child.take().unwrap().wait().unwrap().success()
    }

    /// Sends a signal to a replica that runs: a child of ours that nobody has waited for.
    pub(crate) fn signal(&self, replica: usize, signal: Signal) {
        let id = self.replicas[replica].child.as_ref().unwrap().id();
        kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal).unwrap();
    }

    /// A connection to one replica and no other.
    pub(crate) async fn connection(&self, replica: usize) -> Option<Connection> {
        let address = &self.replicas[replica].client;
        Connection::open(address, None, Duration::from_secs(1), ConnectionLimits::default()).await.ok()
    }

    /// What a replica says of itself.
    pub(crate) async fn status(&self, replica: usize) -> Option<serde_json::Value> {
        let connection = self.connection(replica).await?;
        let status = tokio::time::timeout(Duration::from_secs(1), connection.status()).await.ok()?.ok()?;
        Some(serde_json::from_str(&status).unwrap())
    }

    /// One of the numbers that a replica counts, as its `/metrics` show it.
    pub(crate) fn metric(&self, replica: usize, name: &str) -> u64 {
        let mut stream = TcpStream::connect(self.http(replica)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits for the replica that leads and serves, other than `not`.
    pub(crate) async fn primary(&self, not: Option<usize>) -> usize {
        let began = Instant::now();
        loop {
            for replica in (0..self.len()).filter(|replica| Some(*replica) != not) {
                let status = self.status(replica).await.unwrap_or_default();
                if status["role"] == "primary" && status["serving"] == true {
                    return replica;
                }
            }
            assert!(began.elapsed() < PATIENCE, "no replica leads");
            // sleeps: between two looks at what another process says of itself.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.replicas.iter_mut().filter_map(|replica| replica.child.as_mut()) {
            // It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
