//! A state carried away from running processes, and a cluster that begins with it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use chronon_bank::Bank;
use chronon_server::{Founding, Manifest, RestoredState};
use chronon_vsr::{ClusterId, Epoch, ReplicaId, Ring};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use support::{Cluster, Directory, chronon, stderr, stdout};

fn asked(api: &str, arguments: &[&str]) -> Value {
    let output = chronon(&[arguments, &["--json", "--api", api]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn ask(cluster: &Cluster, arguments: &[&str]) -> Value {
    asked(&cluster.api(), arguments)
}

/// Opens two accounts and a sink that nobody listens behind.
fn furnish(cluster: &Cluster) {
    let sink = ["sinks", "set", "webhook", "--contract", "idempotent", "--window", "24h"];
    ask(cluster, &[&sink[..], &["--url", "http://127.0.0.1:9/hook", "--allow-private"]].concat());
    for account in [1, 2] {
        ask(cluster, &["submit", &format!(r#"{{"open":{{"account":{account},"balance":100}}}}"#)]);
    }
}

/// Moves a coin, and returns the effect's id.
fn transfer(cluster: &Cluster, number: u64, key: &str) -> String {
    let command = format!(r#"{{"transfer":{{"transfer":{number},"from":1,"to":2,"amount":1}}}}"#);
    ask(cluster, &["submit", &command, "--key", key])["effects"][0].as_str().unwrap().to_owned()
}

fn balance(cluster: &Cluster) -> u64 {
    ask(cluster, &["query", r#"{"balance":{"account":2}}"#])["answer"]["balance"].as_u64().unwrap()
}

/// Every effect's key and state, by id.
fn effects(cluster: &Cluster) -> BTreeMap<String, (String, String)> {
    let listed = ask(cluster, &["effects", "list"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let effect = |effect: &Value| (text(&effect["id"]), (text(&effect["key"]), text(&effect["state"])));
    listed["effects"].as_array().unwrap().iter().map(effect).collect()
}

#[tokio::test]
async fn a_cluster_restored_from_an_online_backup_keeps_keys_doubts_open_effects_and_starts_nothing() {
    let mut cluster = Cluster::started("backed-up", 3);
    let primary = cluster.primary(None).await;
    furnish(&cluster);
    let old: Vec<String> = (0..5).map(|number| transfer(&cluster, number, &format!("k{number}"))).collect();
    let away = Directory::new("backup");
    let to = away.path("bank");
    // From a replica that does not lead, twice: the second takes up what has happened since.
    let backup = asked(cluster.api_of((primary + 1) % 3), &["backup", "--to", &to]);
    assert_eq!(backup["fetched"], backup["chunks"], "{backup}");
    transfer(&cluster, 5, "k5");
    let again = asked(cluster.api_of((primary + 2) % 3), &["backup", "--to", &to]);
    assert!(backup["op"].as_u64() < again["op"].as_u64(), "{again}");
    let before = effects(&cluster);
    let (held, epoch) = (balance(&cluster), cluster.status(primary).await.unwrap()["epoch"].as_u64());
    // What comes now is lost with the cluster.
    transfer(&cluster, 6, "k6");
    (0..3).for_each(|replica| cluster.kill(replica));

    for replicas in [3, 1] {
        let mut restored = Cluster::restored(&format!("restored-{replicas}"), replicas, &to);
        (0..replicas).for_each(|replica| restored.start(replica));
        let primary = restored.primary(None).await;
        assert_eq!(balance(&restored), held);
        // A command under a key that the backup holds is a repeat.
        assert_eq!(transfer(&restored, 0, "k0"), old[0]);
        assert_eq!(balance(&restored), held);
        let after = effects(&restored);
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
        for (id, (key, state)) in &after {
            assert_eq!((key, state.as_str()), (&before[id].0, "parked"), "{id}");
        }
        let shown = ask(&restored, &["effects", "show", &old[0]]);
        assert_eq!(shown["parked"], "in_doubt", "{shown}");
        let sink = ask(&restored, &["sinks", "show", "webhook"]);
        assert_eq!(sink["frozen"], true, "{sink}");
        let new = transfer(&restored, 7, "k7");
        let (key, _) = &effects(&restored)[&new];
        let lineage = |key: &str| key.split('-').next().unwrap().to_owned();
        assert_ne!(lineage(key), lineage(&before[&old[0]].0), "a sink would take it for an old one");
        assert!(epoch < restored.status(primary).await.unwrap()["epoch"].as_u64());

        // It is a cluster like any other: it finds everything after a restart.
        (0..replicas).for_each(|replica| restored.kill(replica));
        (0..replicas).for_each(|replica| restored.start(replica));
        restored.primary(None).await;
        assert_eq!(balance(&restored), held + 1);
        assert_eq!(effects(&restored)[&old[0]], after[&old[0]]);
    }
}

/// A replica keeps four states at most, each for a minute after the last look at it.
#[tokio::test]
async fn a_backup_that_has_ended_is_in_nobodys_way() {
    let cluster = Cluster::started("backup-ended", 1);
    cluster.primary(None).await;
    let away = Directory::new("backup-ended-away");
    let to = away.path("bank");
    for _ in 0..6 {
        ask(&cluster, &["backup", "--to", &to]);
    }
    let call = |method: &str, path: &str| {
        let mut stream = TcpStream::connect(cluster.http(0)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.to_lowercase()
    };
    let mut roots = Vec::new();
    for account in 10..14 {
        ask(&cluster, &["submit", &format!(r#"{{"open":{{"account":{account},"balance":1}}}}"#)]);
        let answer = call("POST", "/v1/backups");
        let manifest: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        roots.push(manifest["root"].as_str().unwrap().to_owned());
    }
    ask(&cluster, &["submit", r#"{"open":{"account":20,"balance":1}}"#]);
    let refused = call("POST", "/v1/backups");
    assert!(refused.contains("503") && refused.contains("retry-after: "), "{refused}");
    assert!(call("DELETE", "/v1/backups/f").contains("404"));
    assert!(call("DELETE", &format!("/v1/backups/{}", roots[1])).contains("200"));
    ask(&cluster, &["backup", "--to", &to]);
    // A look at a chunk keeps what is being carried away, and brings back nothing that has ended.
    for name in ["anew", "once-more"] {
        ask(&cluster, &["backup", "--to", &away.path(name)]);
    }
}

/// A fence that is below what a sink has seen is refused there, for ever. Clocks are behind now and then: here that of the
/// restore stands at 1970, and the cluster was founded when its own stood at 2096.
#[tokio::test]
async fn a_restored_epoch_is_above_what_the_state_knows_of_whatever_the_clock_says() {
    let cluster = Cluster::started("epoch", 1);
    cluster.primary(None).await;
    furnish(&cluster);
    let away = Directory::new("epoch-away");
    let (first, second) = (away.path("first"), away.path("second"));
    ask(&cluster, &["backup", "--to", &first]);
    let state = RestoredState::read::<Bank>(first.as_ref()).unwrap();
    let log_time = Manifest::read(first.as_ref()).unwrap().unwrap().timestamp / 1_000_000_000;
    assert_eq!(state.epoch_above(0), Some(Epoch::new((log_time + 1) << 32)));
    assert_eq!(state.epoch_above(u32::MAX), Some(Epoch::new(u64::from(u32::MAX) << 32)));

    let mut later = Cluster::restored("epoch-later", 1, &first);
    let data = later.data(0);
    let config = std::fs::read_to_string(later.config(0)).unwrap();
    let named = config.lines().find_map(|line| line.strip_prefix("cluster = \"")?.strip_suffix('"')).unwrap();
    let (epoch, ring) = (Epoch::new(4_000_000_000 << 32), Ring::new(32 << 20, 1 << 20).unwrap());
    let cluster_id = ClusterId::new(u128::from_str_radix(named, 16).unwrap());
    let founding = Founding { cluster: cluster_id, ring, ..Founding::draw(1).unwrap() }.in_epoch(epoch);
    std::fs::remove_dir_all(&data).unwrap();
    state.format(&data, &founding, ReplicaId::new(0)).unwrap();
    later.start(0);
    later.primary(None).await;
    transfer(&later, 1, "k1");
    ask(&later, &["backup", "--to", &second]);
    let state = RestoredState::read::<Bank>(second.as_ref()).unwrap();
    assert_eq!(state.epoch_above(0), Some(Epoch::new(4_000_000_001 << 32)));
}

#[tokio::test]
async fn a_damaged_backup_is_refused_with_the_file_and_mended_by_the_next() {
    let cluster = Cluster::started("backup-damaged", 1);
    cluster.primary(None).await;
    furnish(&cluster);
    let away = Directory::new("backup-damaged-away");
    let to = away.path("bank");
    ask(&cluster, &["backup", "--to", &to]);
    let chunks: Vec<PathBuf> =
        std::fs::read_dir(format!("{to}/chunks")).unwrap().map(|chunk| chunk.unwrap().path()).collect();
    let restore = |name: &str| {
        let dir = away.path(name);
        chronon(&["restore", "--from", &to, "--replicas", "1", "--log-mib", "32", "--dir", &dir])
    };
    for (number, chunk) in chunks.iter().enumerate() {
        let whole = std::fs::read(chunk).unwrap();
        let mut bytes = whole.clone();
        bytes[whole.len() / 2] ^= 1;
        std::fs::write(chunk, &bytes).unwrap();
        let refused = restore(&format!("damaged-{number}"));
        assert_eq!(refused.status.code(), Some(1));
        let name = chunk.file_name().unwrap().to_str().unwrap();
        assert!(stderr(&refused).contains(name), "{}", stderr(&refused));
        std::fs::write(chunk, &whole).unwrap();
    }
    // Every digit of the manifest counts.
    let manifest = format!("{to}/manifest.json");
    let whole = std::fs::read(&manifest).unwrap();
    for at in (0..whole.len()).filter(|at| whole[*at].is_ascii_digit()) {
        let mut bytes = whole.clone();
        bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
        std::fs::write(&manifest, bytes).unwrap();
        assert!(RestoredState::read::<Bank>(to.as_ref()).is_err(), "byte {at}");
    }
    let other = String::from_utf8(whole.clone()).unwrap().replacen("\"timestamp\": 1", "\"timestamp\": 2", 1);
    std::fs::write(&manifest, other).unwrap();
    let refused = stderr(&restore("another-manifest"));
    assert!(refused.contains("manifest.json is damaged"), "{refused}");
    std::fs::remove_file(&manifest).unwrap();
    assert!(stderr(&restore("no-manifest")).contains("manifest.json is missing"));
    std::fs::write(&manifest, whole).unwrap();
    std::fs::remove_file(&chunks[0]).unwrap();
    let refused = restore("missing");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        stderr(&refused).matches("No such file").count(),
        1,
        "a cause is told once: {}",
        stderr(&refused)
    );
    let again = ask(&cluster, &["backup", "--to", &to]);
    assert_eq!(again["fetched"], 1, "{again}");
    let restored = restore("whole");
    assert!(restored.status.success(), "{}", stderr(&restored));
}

#[tokio::test]
async fn a_backup_has_its_directory_to_itself_and_spares_what_is_not_its_own() {
    let cluster = Cluster::started("backup-apart", 1);
    cluster.primary(None).await;
    furnish(&cluster);
    let away = Directory::new("backup-apart-away");
    let refused = |to: &str, words: &str| {
        let refused = chronon(&["backup", "--to", to, "--api", &cluster.api()]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
    };
    // A directory of something else stays as it is, whatever it is called.
    for (number, file) in ["letter", "chunks/letter", "manifest.json"].into_iter().enumerate() {
        let to = away.path(&format!("other-{number}"));
        std::fs::create_dir_all(format!("{to}/chunks")).unwrap();
        std::fs::write(format!("{to}/{file}"), "dear").unwrap();
        refused(&to, file.rsplit('/').next().unwrap());
        assert_eq!(std::fs::read(format!("{to}/{file}")).unwrap(), b"dear");
        assert!(!std::path::Path::new(&to).join("lock").exists(), "nothing is left there, either");
    }
    let to = away.path("bank");
    ask(&cluster, &["backup", "--to", &to]);
    // What is under way is not disturbed.
    let lock = std::fs::File::options().write(true).open(format!("{to}/lock")).unwrap();
    lock.lock().unwrap();
    refused(&to, "under way");
    drop(lock);
    ask(&cluster, &["backup", "--to", &to]);
    // Nor is the backup of another cluster replaced.
    let manifest = format!("{to}/manifest.json");
    let mut other: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    other["cluster"] = "0123".into();
    std::fs::write(&manifest, other.to_string()).unwrap();
    refused(&to, "a backup of cluster 0123");
    assert_eq!(std::fs::read_to_string(&manifest).unwrap(), other.to_string());
}

/// The name of a file, what is put in its place, the words that say so, and who says them.
type OddFile<'a> = (&'a str, &'a dyn Fn(&Path), &'a str, &'a [&'a [&'a str]]);

/// Nobody is at the other end of a pipe, and there is no memory for a file without measure.
#[tokio::test]
async fn what_lies_in_the_place_of_a_backups_files_is_told_and_neither_waited_for_nor_read_without_end() {
    let cluster = Cluster::started("backup-odd", 1);
    cluster.primary(None).await;
    furnish(&cluster);
    let away = Directory::new("backup-odd-files");
    let to = away.path("bank");
    ask(&cluster, &["backup", "--to", &to]);
    let pipe = |path: &Path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let endless = |path: &Path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    let api = cluster.api();
    let (backup, restore) = (
        ["backup", "--to", to.as_str(), "--api", api.as_str()],
        ["restore", "--from", to.as_str(), "--dir", "nowhere", "--replicas", "1"],
    );
    let cases: [OddFile<'_>; 3] = [
        ("manifest.json", &pipe, "manifest.json: it is no file", &[&backup, &restore]),
        ("manifest.json", &endless, "manifest.json: it has more than 16777216 bytes", &[&backup, &restore]),
        ("lock", &pipe, "lock: it is no file", &[&backup]),
    ];
    for (name, put, words, commands) in cases {
        let (path, aside) = (PathBuf::from(&to).join(name), PathBuf::from(away.path("aside")));
        fs::rename(&path, &aside).unwrap();
        put(&path);
        for command in commands {
            let refused = chronon(command);
            assert_eq!(refused.status.code(), Some(1), "{name}: {}", stderr(&refused));
            assert!(stderr(&refused).contains(words), "{name}: {}", stderr(&refused));
        }
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    // A chunk that is none is fetched again.
    let chunk = fs::read_dir(format!("{to}/chunks")).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&chunk).unwrap();
    pipe(&chunk);
    ask(&cluster, &["backup", "--to", &to]);
    assert!(chunk.is_file());
    endless(&chunk);
    let refused = chronon(&restore);
    assert!(stderr(&refused).contains("it has more than 262144 bytes"), "{}", stderr(&refused));
}
