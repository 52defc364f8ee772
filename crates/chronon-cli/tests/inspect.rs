//! What `chronon inspect` tells of directories that real replicas left behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use chronon_storage::{ChunkList, DataDirectory, Disk as _, File, Vault, perform};
use chronon_vsr::Checksum;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use support::accounts::Accounts;
use support::{Cluster, chronon, stderr, stdout};

/// A cluster that has taken a few commands, with this replica stopped.
async fn used(name: &str, replicas: usize, stopped: usize) -> (Cluster, PathBuf) {
    let mut cluster = Cluster::started(name, replicas);
    cluster.primary(None).await;
    for account in 0..5 {
        let open = format!(r#"{{"open":{{"account":{account},"balance":1}}}}"#);
        let submitted = chronon(&["submit", &open, "--api", &cluster.api()]);
        assert!(submitted.status.success(), "{}", stderr(&submitted));
    }
    assert!(cluster.terminate(stopped));
    let data = cluster.data(stopped);
    (cluster, data)
}

fn inspected(data: &Path) -> (i32, serde_json::Value, String) {
    let data = data.to_str().unwrap();
    let json = chronon(&["inspect", "--data", data, "--json"]);
    let text = chronon(&["inspect", "--data", data]);
    assert_eq!(json.status.code(), text.status.code());
    assert_eq!(stderr(&text), "", "it tells what it found, and nothing else");
    let told = serde_json::from_str(&stdout(&json)).unwrap_or_else(|error| panic!("{error}: {json:?}"));
    (json.status.code().unwrap(), told, stdout(&text))
}

fn flip(path: PathBuf, at: usize) {
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at] ^= 0x20;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn an_inspection_says_what_is_damaged_where_what_it_means_and_what_to_do() {
    let (_cluster, data) = used("inspect", 3, 2).await;
    let (code, told, text) = inspected(&data);
    assert_eq!((code, &told["health"]), (0, &"healthy".into()), "{text}");
    assert_eq!(told["superblock"]["replica"], 2);
    assert!(5 <= told["chain"]["linked"].as_u64().unwrap(), "{told}");
    assert!(text.contains("Everything that counts is there and right."), "{text}");

    flip(data.join("superblock"), 16 * 1024 + 100);
    flip(data.join("wal"), 700);
    let (code, told, text) = inspected(&data);
    assert_eq!((code, &told["health"]), (2, &"damaged".into()), "{text}");
    assert_eq!(told["copies"][1]["state"], "damaged", "{told}");
    assert_eq!(told["log"]["damage"][0]["first_bad"], 512, "{told}");
    assert!(text.contains("copy 1, from byte 16384: damaged: it is not what was written"), "{text}");
    assert!(text.contains("first damage at byte 512 of the wal"), "{text}");
    assert!(text.contains("what it means") && text.contains("Start the replica"), "{text}");

    // What a start refuses is not called mended by it.
    let (superblock, wal, aside) = (data.join("superblock"), data.join("wal"), data.join("aside"));
    let whole = std::fs::read(&superblock).unwrap();
    std::fs::write(&superblock, &whole[..48 * 1024]).unwrap();
    let (code, _, text) = inspected(&data);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("49152 bytes instead of 65536") && !text.contains("Two are enough"), "{text}");
    std::fs::write(&superblock, whole).unwrap();
    std::fs::rename(&wal, &aside).unwrap();
    std::fs::create_dir(&wal).unwrap();
    let (code, told, text) = inspected(&data);
    assert_eq!((code, told["wal_size"].is_null()), (3, true), "{text}");
    assert!(text.contains("wal is no file but a directory"), "{text}");
    std::fs::remove_dir(&wal).unwrap();
    std::fs::rename(&aside, &wal).unwrap();

    for copy in [0, 2, 3] {
        flip(data.join("superblock"), copy * 16 * 1024 + 100);
    }
    let (code, told, text) = inspected(&data);
    assert_eq!((code, &told["health"]), (3, &"lost".into()), "{text}");
    assert!(told["refusal"].as_str().unwrap().contains("the superblock can't be read"), "{told}");
    assert!(text.contains("Never an older copy"), "{text}");

    std::fs::remove_file(data.join("superblock")).unwrap();
    let (code, told, text) = inspected(&data);
    assert_eq!((code, told["superblock_size"].is_null()), (3, true), "{text}");
    assert!(text.contains("superblock is gone"), "{text}");
}

/// What was put in the place of the WAL, and the words that say so.
type NoLog = (&'static str, fn(&Path), &'static str);

const NO_LOGS: [NoLog; 6] = [
    ("gone", |_| (), "wal is gone, though other files of this replica are there"),
    ("a directory", |wal| std::fs::create_dir(wal).unwrap(), "wal is no file but a directory"),
    ("a link", |wal| symlink("/nowhere/wal", wal).unwrap(), "but a link to /nowhere/wal, which is not there"),
    // Whoever asks may not open it: who runs tests may open everything that is not a loop.
    ("not to be opened", |wal| symlink("wal", wal).unwrap(), "look at"),
    ("empty", |wal| std::fs::write(wal, "").unwrap(), "the wal file has 0 bytes instead of"),
    ("short", |wal| std::fs::write(wal, [0; 100]).unwrap(), "the wal file has 100 bytes instead of"),
];

/// Everything that looks at a directory says what lies in the place of the log, and nothing of what it can't have seen there.
async fn says_what_is_no_log(name: &str, replicas: usize) {
    let (cluster, data) = used(name, replicas, 0).await;
    let (path, wal, aside) = (data.to_str().unwrap(), data.join("wal"), data.join("aside"));
    for (what, put, words) in NO_LOGS {
        std::fs::rename(&wal, &aside).unwrap();
        put(&wal);
        let (code, told, text) = inspected(&data);
        let meaning = told["meaning"].as_array().unwrap();
        assert_eq!((code, meaning.len(), told["log"].is_null()), (3, 1, true), "{what}: {text}");
        assert!(meaning[0].as_str().unwrap().contains(words), "{what}: {text}");
        assert!(!told["advice"].as_array().unwrap().is_empty(), "{what}: {text}");
        assert!(!(replicas == 1 && text.contains("peers")), "{what}: {text}");
        let verified = chronon(&["log", "verify", "--data", path]);
        assert_eq!(verified.status.code(), Some(3), "{what}");
        assert!(
            stdout(&verified).contains(words) && !stdout(&verified).contains("hold nothing"),
            "{what}: {verified:?}"
        );
        for arguments in
            [["log", "show", "--data", path].as_slice(), &["start", "--config", cluster.config(0)]]
        {
            let refused = chronon(arguments);
            assert_eq!(refused.status.code(), Some(1), "{what}: {}", stderr(&refused));
            assert!(stderr(&refused).contains(words), "{what}: {}", stderr(&refused));
            assert!(stderr(&refused).contains("chronon inspect"), "{what}: {}", stderr(&refused));
        }
        let no_file = std::fs::remove_file(&wal).or_else(|_| std::fs::remove_dir(&wal));
        assert!(no_file.is_ok() || what == "gone");
        std::fs::rename(&aside, &wal).unwrap();
    }
    assert_eq!(inspected(&data).0, 0);
}

#[tokio::test]
async fn what_lies_in_the_place_of_a_log_is_told() {
    says_what_is_no_log("inspect-no-log", 3).await;
}

#[tokio::test]
async fn what_lies_in_the_place_of_the_only_log_is_told() {
    says_what_is_no_log("inspect-no-log-alone", 1).await;
}

/// Whoever opens a pipe waits for somebody at its other end.
#[tokio::test]
async fn a_pipe_in_the_place_of_a_file_is_told_and_not_waited_for() {
    let (cluster, data) = used("inspect-pipe", 1, 0).await;
    let path = data.to_str().unwrap();
    for (name, code, words) in [
        ("lock", 1, "lock is no file but a device, a pipe or a socket"),
        ("superblock", 3, "superblock is no file but a device, a pipe or a socket"),
    ] {
        let (file, aside) = (data.join(name), data.join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let looked = chronon(&["inspect", "--data", path]);
        let told = format!("{}{}", stdout(&looked), stderr(&looked));
        assert_eq!(looked.status.code(), Some(code), "{told}");
        assert!(told.contains(words), "{told}");
        let refused = chronon(&["start", "--config", cluster.config(0)]);
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
        std::fs::remove_file(&file).unwrap();
        std::fs::rename(&aside, &file).unwrap();
    }
    assert_eq!(inspected(&data).0, 0);
}

#[tokio::test]
async fn a_wal_of_another_replica_is_told_from_damage() {
    let (cluster, data) = used("inspect-foreign", 3, 0).await;
    let (own, aside) = (data.join("wal"), data.join("aside"));
    std::fs::rename(&own, &aside).unwrap();
    std::fs::copy(cluster.data(1).join("wal"), &own).unwrap();
    let (code, told, text) = inspected(&data);
    assert_eq!((code, told["log"]["foreign"].is_u64()), (2, true), "{text}");
    assert!(text.contains("superblock and wal do not belong together"), "{text}");
    assert!(!text.contains("hold nothing any more: nothing is lost"), "{text}");
    std::fs::rename(&aside, &own).unwrap();
    let (code, told, text) = inspected(&data);
    assert_eq!((code, told["log"]["foreign"].is_null()), (0, true), "{text}");
}

#[tokio::test]
async fn an_inspection_of_the_only_replica_says_that_nobody_else_has_it() {
    let (_cluster, data) = used("inspect-alone", 1, 0).await;
    flip(data.join("wal"), 400);
    let (code, _, text) = inspected(&data);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("This is the only replica"), "{text}");
    flip(data.join("wal"), 400);

    // Where nobody can tell what the log held, nobody says that nothing of it is lost.
    let (wal, aside) = (data.join("wal"), data.join("aside"));
    std::fs::rename(&wal, &aside).unwrap();
    std::fs::write(&wal, vec![0xff; std::fs::metadata(&aside).unwrap().len() as usize]).unwrap();
    let (code, _, text) = inspected(&data);
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("in which no group is found any more: what they held can't be told"), "{text}");
    assert!(!text.contains("nothing is lost"), "{text}");
    std::fs::rename(&aside, &wal).unwrap();

    // What it does not need it does not have to ask for.
    flip(data.join("superblock"), 16 * 1024 + 100);
    let (code, _, text) = inspected(&data);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("it needs nothing of what is damaged") && !text.contains("peers"), "{text}");
}

/// Writes another checkpoint of one chunk beside those of a stopped replica, as if it had been taken before, and damages
/// the header of that chunk. Returns its root, its pack, and where the header is.
fn with_a_damaged_older_checkpoint(data: &Path) -> (Checksum, File, u64) {
    let directory = DataDirectory::open(data).unwrap();
    let mut disk = directory.disk().unwrap();
    let identity = chronon_storage::inspect(&mut disk).superblock.unwrap().identity;
    let mut vault = Vault::open(&mut disk, identity).unwrap();
    let chunk = b"a part of a state before";
    let id = Checksum::of_chunk(chunk);
    vault.put(id, chunk);
    let root = vault.put_list(ChunkList { chunks: vec![(id, chunk.len() as u32)] }).unwrap();
    vault.finish(root);
    while let Some(job) = vault.next_job() {
        perform(&mut disk, &job).unwrap();
        vault.done(job.id);
    }
    let pack = File::Pack(disk.packs().unwrap().into_iter().max().unwrap());
    drop((disk, directory));
    flip(data.join(pack.name()), 70);
    (root, pack, 0)
}

/// Only its map and its list are left of it: it does not vanish from what is told.
async fn tells_of_an_older_checkpoint(name: &str, replicas: usize, advice: &str) {
    let mut cluster = Cluster::with_log(name, replicas, 16);
    (0..replicas).for_each(|replica| cluster.start(replica));
    let mut accounts = Accounts::of(&cluster).await;
    let checkpoint = async |cluster: &Cluster| {
        cluster.status(0).await.unwrap_or_default()["checkpoint"].as_u64().unwrap_or(0)
    };
    while checkpoint(&cluster).await == 0 {
        accounts.open(64).await;
    }
    assert!(cluster.terminate(0));
    let data = cluster.data(0);
    assert_eq!(inspected(&data).0, 0);
    let (root, pack, position) = with_a_damaged_older_checkpoint(&data);
    let (code, told, text) = inspected(&data);
    assert_eq!((code, &told["health"]), (2, &"damaged".into()), "{text}");
    let damaged = serde_json::json!([{ "file": pack.name(), "position": position, "places": 1 }]);
    assert_eq!(told["packs"]["damaged"], damaged, "{told}");
    let newest = told["checkpoints"][0]["op"].as_u64().unwrap();
    let older = told["checkpoints"].as_array().unwrap().iter().find(|of| of["root"] == root.to_string());
    assert!(older.is_some_and(|older| older["op"].is_null() && older["damage"][0].is_string()), "{told}");
    for words in [
        format!("{pack}, byte {position}: the header of a record is damaged"),
        format!("The checkpoint {root} is incomplete (1 of its chunks are damaged or missing)"),
        format!("one beside the newest at op {newest}: the checkpoint before it, or a backup"),
        "Nothing is lost while the newest is whole".to_owned(),
        "What lay there counts as missing: nothing that the newest checkpoint needs.".to_owned(),
        advice.to_owned(),
    ] {
        assert!(text.contains(&words), "{words}: {text}");
    }
    let verified = chronon(&["log", "verify", "--data", data.to_str().unwrap()]);
    assert_eq!(verified.status.code(), Some(2));
    assert!(stdout(&verified).contains("is incomplete"), "{verified:?}");
    // Nothing of that keeps it from starting.
    cluster.start(0);
    accounts.open(8).await;
    accounts.assert_all_there().await;
}

#[tokio::test]
async fn an_older_checkpoint_that_lost_the_header_of_a_chunk_is_told() {
    tells_of_an_older_checkpoint("inspect-older", 3, "there is nothing to mend").await;
}

#[tokio::test]
async fn an_older_checkpoint_of_the_only_replica_that_lost_the_header_of_a_chunk_is_told() {
    tells_of_an_older_checkpoint("inspect-older-alone", 1, "take a backup once the replica runs").await;
}

#[tokio::test]
async fn a_log_is_verified_from_end_to_end_and_its_ops_are_listed() {
    let (_cluster, data) = used("log", 3, 1).await;
    let path = data.to_str().unwrap();
    let verified = chronon(&["log", "verify", "--data", path]);
    assert_eq!(verified.status.code(), Some(0), "{}", stderr(&verified));
    let text = stdout(&verified);
    assert!(text.contains("each linked to the one before") && text.contains("read "), "{text}");
    let shown = chronon(&["log", "show", "--data", path, "--from", "2", "--limit", "3", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout(&shown)).unwrap();
    let ops: Vec<u64> =
        shown["ops"].as_array().unwrap().iter().map(|op| op["op"].as_u64().unwrap()).collect();
    assert_eq!(ops, [2, 3, 4], "{shown}");
    assert!(shown["ops"][0]["state"] == "here" && 0 < shown["ops"][0]["bytes"].as_u64().unwrap(), "{shown}");
    assert!(stdout(&chronon(&["log", "show", "--data", path])).lines().count() > 4);
    let beyond = chronon(&["log", "show", "--data", path, "--from", &u64::MAX.to_string()]);
    assert_eq!((beyond.status.code(), stdout(&beyond).lines().count()), (Some(0), 1), "{}", stderr(&beyond));

    flip(data.join("wal"), 400);
    let verified = chronon(&["log", "verify", "--data", path, "--json"]);
    let told: serde_json::Value = serde_json::from_str(&stdout(&verified)).unwrap();
    assert_eq!((verified.status.code(), &told["missing"][0]), (Some(2), &1.into()), "{told}");
    assert!(stdout(&chronon(&["log", "show", "--data", path])).contains("damaged or not here"));
}

#[tokio::test]
async fn what_a_replica_holds_or_what_is_no_directory_is_not_inspected() {
    let cluster = Cluster::started("inspect-held", 1);
    cluster.primary(None).await;
    let refused = chronon(&["inspect", "--data", cluster.data(0).to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("in use by a replica"), "{}", stderr(&refused));
    for path in [cluster.directory.path("nowhere"), cluster.directory.path("cluster")] {
        let refused = chronon(&["inspect", "--data", &path]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains("holds no data of a replica"), "{}", stderr(&refused));
    }
}
