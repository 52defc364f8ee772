//! Disks that are not as they were left: one replica is stopped, its files are damaged, cut, removed or replaced by an
//! older copy, and it is started again. The cluster keeps every acknowledged command, and the replica heals or refuses,
//! and says what is wrong where.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::accounts::Accounts;
use support::{Cluster, PATIENCE, chronon, stdout};

const COPY: usize = 16 * 1024;
const BLOCK: usize = 4096;

/// How a replica ends that was started on a damaged directory.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It follows the others again, with all that they have.
    Heals,
    /// It does not start, or stops at once, and its last words hold this.
    Refuses(&'static str),
    /// Which of the two depends on what was flushed and shown in the moments before: both are right.
    HealsOrRefuses(&'static str),
}

use End::{Heals, HealsOrRefuses, Refuses};

/// What is done to a stopped replica's directory. The second directory is a copy from before its last start, the third
/// one from within it.
type Damage = Box<dyn Fn(&Path, &Path, &Path)>;

struct Case {
    name: &'static str,
    damage: Damage,
    end: End,
}

fn case(name: &'static str, end: End, damage: impl Fn(&Path) + 'static) -> Case {
    Case { name, end, damage: Box::new(move |data, _, _| damage(data)) }
}

fn change(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn flip_copies(data: &Path, copies: &[usize]) {
    change(data.join("superblock"), |bytes| copies.iter().for_each(|copy| bytes[copy * COPY + 250] ^= 0x20));
}

/// Where groups of the log start, by what stands there.
fn groups(wal: &[u8]) -> Vec<usize> {
    (0..wal.len()).step_by(BLOCK).filter(|at| wal[at + 16..at + 24] == *b"CHRONGRP").collect()
}

/// Flips a byte in every unit of the group that `which` chooses of all.
fn flip_group(data: &Path, which: fn(usize) -> usize) {
    change(data.join("wal"), |wal| {
        let groups = groups(wal);
        let at = groups[which(groups.len())];
        (at..at + BLOCK).step_by(512).for_each(|unit| wal[unit + 77] ^= 0x20);
    });
}

fn packs(data: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(data).unwrap().map(|found| found.unwrap().path());
    let mut packs: Vec<PathBuf> =
        names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("pack-")).collect();
    packs.sort();
    assert!(!packs.is_empty(), "the replica has a checkpoint");
    packs
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for found in fs::read_dir(from).unwrap() {
        let found = found.unwrap();
        fs::copy(found.path(), to.join(found.file_name())).unwrap();
    }
}

fn put_back(from: &Path, to: &Path) {
    fs::remove_dir_all(to).unwrap();
    copy(from, to);
}

/// Waits for something that a replica does by itself.
async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !done().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        // sleeps: between two looks at other processes.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The replica has executed everything that is committed now.
async fn follows(cluster: &Cluster, replica: usize) {
    let primary = cluster.primary(None).await;
    let goal = cluster.status(primary).await.unwrap()["commit"].as_u64().unwrap();
    let what = format!("replica {replica} follows; it printed\n{}", cluster.printed(replica));
    eventually(&what, async || {
        let status = cluster.status(replica).await.unwrap_or_default();
        status["applied"].as_u64().is_some_and(|applied| goal <= applied)
    })
    .await;
}

/// Starts a replica whose directory is as it was before its damaged start, until something is so. A peer that heard of that
/// start takes the first one after it for a second copy, since both count the same, and may say so late; the next one
/// counts higher, and shows enough.
async fn returns(cluster: &mut Cluster, replica: usize, so: impl AsyncFn(&Cluster) -> bool) {
    cluster.start(replica);
    let mut refused = false;
    eventually(&format!("replica {replica} returns or is refused"), async || {
        refused = cluster.ended(replica).is_some();
        refused || so(cluster).await
    })
    .await;
    if !refused {
        cluster.kill(replica);
    }
    cluster.start(replica);
    eventually(&format!("replica {replica} returns"), async || {
        let ended = cluster.ended(replica);
        assert!(
            ended.is_none(),
            "replica {replica} is refused again; it printed\n{}",
            cluster.printed(replica)
        );
        so(cluster).await
    })
    .await;
}

/// Plays the cases one after another on one cluster, each on every replica.
async fn play(name: &str, cases: Vec<Case>) {
    let mut cluster = Cluster::with_log(name, 3, 16);
    (0..3).for_each(|replica| cluster.start(replica));
    let mut accounts = Accounts::of(&cluster).await;
    // Until everybody has a checkpoint.
    for replica in 0..3 {
        while cluster.status(replica).await.unwrap_or_default()["checkpoint"].as_u64().unwrap_or(0) == 0 {
            accounts.open(64).await;
        }
    }
    let cases = cases.iter().flat_map(|case| (0..3).map(move |victim| (victim, case)));
    for (victim, Case { name, damage, end }) in cases {
        let data = cluster.data(victim);
        let kept = data.with_file_name("kept");
        let (before, within) = (data.with_file_name("before"), data.with_file_name("within"));
        cluster.kill(victim);
        copy(&data, &before);
        cluster.start(victim);
        follows(&cluster, victim).await;
        accounts.open(8).await;
        cluster.kill(victim);
        copy(&data, &within);
        cluster.start(victim);
        follows(&cluster, victim).await;
        accounts.open(8).await;
        follows(&cluster, victim).await;
        cluster.kill(victim);
        copy(&data, &kept);

        damage(&data, &before, &within);
        accounts.open(8).await;
        let silent = cluster.printed(victim).len();
        cluster.start(victim);
        let primary = cluster.primary(Some(victim)).await;
        let goal = cluster.status(primary).await.unwrap()["commit"].as_u64().unwrap();
        let mut ended = None;
        eventually(&format!("{name}: replica {victim} heals or ends"), async || {
            ended = cluster.ended(victim);
            let status = cluster.status(victim).await.unwrap_or_default();
            ended.is_some() || status["applied"].as_u64().is_some_and(|applied| goal <= applied)
        })
        .await;
        let printed = cluster.printed(victim).split_off(silent);
        let last = printed.lines().last().unwrap_or_default();
        let right = match (*end, ended) {
            (Heals | HealsOrRefuses(_), None) => true,
            (Refuses(words) | HealsOrRefuses(words), Some(code)) => code == 1 && last.contains(words),
            (Heals, Some(_)) | (Refuses(_), None) => false,
        };
        assert!(
            right,
            "{name}: replica {victim} should have ended so: {end:?}; code {ended:?}, printed\n{printed}"
        );
        if ended.is_some() {
            // What it really had is welcome again.
            if !data.exists() {
                fs::create_dir(&data).unwrap();
            }
            put_back(&kept, &data);
            returns(&mut cluster, victim, async |cluster| {
                let status = cluster.status(victim).await.unwrap_or_default();
                status["applied"].as_u64().is_some_and(|applied| goal <= applied)
            })
            .await;
        }
        accounts.assert_all_there().await;
        [kept, before, within].iter().for_each(|copy| fs::remove_dir_all(copy).unwrap());
    }
}

#[tokio::test]
async fn a_damaged_superblock_heals_while_two_copies_agree_and_is_refused_otherwise() {
    const LOST: End = Refuses("the superblock can't be read");
    let mut cases: Vec<Case> = Vec::new();
    for copy in 0..4 {
        cases.push(case("a byte of one copy", Heals, move |data| flip_copies(data, &[copy])));
    }
    cases.extend([
        case("two copies", Heals, |data| flip_copies(data, &[0, 3])),
        case("three copies", LOST, |data| flip_copies(data, &[0, 1, 3])),
        case("all copies", LOST, |data| flip_copies(data, &[0, 1, 2, 3])),
        case("cut to one copy", LOST, |data| change(data.join("superblock"), |bytes| bytes.truncate(COPY))),
        case("cut by a byte", Refuses("the superblock file has 65535 bytes instead of 65536"), |data| {
            change(data.join("superblock"), |bytes| bytes.truncate(4 * COPY - 1));
        }),
        case("cut to nothing", Refuses("its superblock is lost"), |data| {
            change(data.join("superblock"), Vec::clear);
        }),
        case("removed", Refuses("superblock is gone"), |data| {
            fs::remove_file(data.join("superblock")).unwrap();
        }),
        Case {
            name: "an older copy",
            damage: Box::new(|data, before, _| {
                fs::copy(before.join("superblock"), data.join("superblock")).unwrap();
            }),
            end: Refuses("the superblock is an older copy"),
        },
    ]);
    play("damage-superblock", cases).await;
}

#[tokio::test]
async fn a_damaged_log_heals_and_one_of_another_size_is_refused() {
    let cases = vec![
        case("its first group", Heals, |data| flip_group(data, |_| 0)),
        case("a group in the middle", Heals, |data| flip_group(data, |count| count / 2)),
        case("its last groups, with all evidence", Heals, |data| {
            (1..4).for_each(|back| match back {
                1 => flip_group(data, |count| count - 1),
                2 => flip_group(data, |count| count - 2),
                _ => flip_group(data, |count| count - 3),
            });
        }),
        case("an unused part", Heals, |data| {
            change(data.join("wal"), |wal| {
                let last = *groups(wal).last().unwrap();
                let unused = (last + (1 << 20)).min(wal.len() - 512);
                wal[unused] ^= 0x20;
            });
        }),
        case("all of it noise", Heals, |data| {
            change(data.join("wal"), |wal| {
                wal.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(7) ^ 0x5a)
            });
        }),
        case("all of it zeros", Heals, |data| change(data.join("wal"), |wal| wal.fill(0))),
        case("cut in the middle", Refuses("the wal file has"), |data| {
            change(data.join("wal"), |wal| wal.truncate(wal.len() / 2));
        }),
        case("removed", Refuses("wal is gone"), |data| fs::remove_file(data.join("wal")).unwrap()),
        Case {
            name: "a copy from before its last start",
            damage: Box::new(|data, before, _| {
                fs::copy(before.join("wal"), data.join("wal")).unwrap();
            }),
            end: HealsOrRefuses("its data directory holds less than this replica has confirmed"),
        },
    ];
    play("damage-log", cases).await;
}

#[tokio::test]
async fn a_damaged_checkpoint_heals_and_an_older_directory_is_refused_by_the_peers() {
    let cases = vec![
        case("a byte of every block of its checkpoints", Heals, |data| {
            for pack in packs(data) {
                change(pack, |bytes| (200..bytes.len()).step_by(BLOCK).for_each(|at| bytes[at] ^= 0x20));
            }
        }),
        case("a byte here and there of its checkpoints", Heals, |data| {
            for pack in packs(data) {
                change(pack, |bytes| {
                    let places = [3, 20, 70, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(5)];
                    places
                        .into_iter()
                        .filter_map(|at| bytes.get_mut(at).map(|byte| *byte ^= 0x20))
                        .for_each(drop);
                });
            }
        }),
        case("its checkpoints cut in half", Heals, |data| {
            packs(data).into_iter().for_each(|pack| change(pack, |bytes| bytes.truncate(bytes.len() / 2)));
        }),
        case("its checkpoints removed", Heals, |data| {
            packs(data).into_iter().for_each(|pack| fs::remove_file(pack).unwrap());
        }),
        Case {
            name: "a copy from before the last start but one",
            damage: Box::new(|data, before, _| put_back(before, data)),
            end: Refuses("its data directory is an older copy: a later start of it was seen"),
        },
        Case {
            name: "a copy from before its last start",
            damage: Box::new(|data, _, within| put_back(within, data)),
            end: Refuses("there are two copies of its data directory"),
        },
        case("nothing at all", Refuses("holds no data of a replica"), |data| {
            fs::remove_dir_all(data).unwrap();
        }),
        case("an empty directory", Refuses("holds no data of a replica"), |data| {
            fs::remove_dir_all(data).unwrap();
            fs::create_dir(data).unwrap();
        }),
        case("a directory of a cluster that was made anew", Refuses("the data is of cluster"), |data| {
            let dir = data.with_file_name("anew");
            let made =
                chronon(&["init", "--replicas", "3", "--log-mib", "16", "--dir", dir.to_str().unwrap()]);
            assert!(made.status.success());
            let number = data.parent().unwrap().file_name().unwrap();
            put_back(&dir.join(number).join("data"), data);
            fs::remove_dir_all(dir).unwrap();
        }),
    ];
    play("damage-directory", cases).await;
}

/// Flips a byte of the body of this op, in every copy that the log has of it.
fn rot_op(data: &Path, op: u64) {
    change(data.join("wal"), |wal| {
        let field = |at: usize| usize::from(u16::from_le_bytes([wal[at], wal[at + 1]]));
        let mut bodies = Vec::new();
        for at in groups(wal) {
            // docs/format.md: the link says how many entries of its own and how many copied headers a group has.
            let (own, copies) = (field(at + 24 + 22), field(at + 24 + 24));
            let first = u64::from_le_bytes(wal[at + 192 + 48..at + 192 + 56].try_into().unwrap());
            if 0 < own && first == op {
                let body = (1 + own + copies) * 192;
                bodies.push(at + body / 496 * 512 + body % 496);
            }
        }
        assert!(!bodies.is_empty(), "op {op} begins a group");
        bodies.into_iter().for_each(|at| wal[at] ^= 0x20);
    });
}

/// Ops that begin a group of their own on every replica.
async fn ops_apart(accounts: &mut Accounts, cluster: &Cluster, count: u64) -> Vec<u64> {
    let mut ops = Vec::new();
    for _ in 0..count {
        accounts.open(1).await;
        let primary = cluster.primary(None).await;
        ops.push(cluster.status(primary).await.unwrap()["op"].as_u64().unwrap());
        for replica in 0..3 {
            follows(cluster, replica).await;
        }
    }
    ops
}

#[tokio::test]
async fn damage_at_different_ops_heals_and_an_op_that_nobody_can_read_stops_all_and_costs_nothing_else() {
    let mut cluster = Cluster::started("damage-quorum", 3);
    let mut accounts = Accounts::of(&cluster).await;
    accounts.open(10).await;
    let ops = ops_apart(&mut accounts, &cluster, 6).await;

    // Each of the three has lost another op.
    (0..3).for_each(|replica| cluster.kill(replica));
    (0..3).for_each(|replica| rot_op(&cluster.data(replica), ops[replica]));
    (0..3).for_each(|replica| cluster.start(replica));
    accounts.assert_all_there().await;
    for replica in 0..3 {
        follows(&cluster, replica).await;
    }

    // Two of three have lost the same op: the third has it.
    (0..3).for_each(|replica| cluster.kill(replica));
    (0..2).for_each(|replica| rot_op(&cluster.data(replica), ops[3]));
    (0..3).for_each(|replica| cluster.start(replica));
    accounts.assert_all_there().await;
    for replica in 0..3 {
        follows(&cluster, replica).await;
    }

    // All of them have: first an op in the middle, which later ones show to be committed, and then the newest.
    assert_lost(&mut cluster, &mut accounts, ops[4]).await;
    assert_lost(&mut cluster, &mut accounts, ops[5]).await;
    accounts.open(5).await;
}

/// An op that rots on every replica is named, nothing is guessed, and one directory that can be read is enough.
async fn assert_lost(cluster: &mut Cluster, accounts: &mut Accounts, op: u64) {
    (0..3).for_each(|replica| cluster.kill(replica));
    (0..3).for_each(|replica| rot_op(&cluster.data(replica), op));
    let told = chronon(&["inspect", "--json", "--data", cluster.data(1).to_str().unwrap()]);
    let told: serde_json::Value = serde_json::from_str(&stdout(&told)).unwrap();
    assert_eq!(told["log"]["faulty"][0]["op"], op, "{told}");
    (0..3).for_each(|replica| cluster.start(replica));
    let mut teller = None;
    eventually("somebody says which op nobody can read", async || {
        for replica in 0..3 {
            let lost = cluster.status(replica).await.unwrap_or_default()["unrecoverable"].clone();
            if lost["op"] == op && lost["replicas"] == serde_json::json!([0, 1, 2]) {
                teller = Some(replica);
            }
        }
        teller.is_some()
    })
    .await;
    let words =
        format!("no replica has it any more: nothing goes on until one of them has it again what=op {op}");
    let teller = teller.expect("somebody told");
    assert!(plain(&cluster.printed(teller)).contains(&words), "{}", cluster.printed(teller));
    let shown = stdout(&chronon(&["status", "--api", cluster.api_of(teller)]));
    let words = format!("replica {teller}: no replica has op {op} any more (asked: [0,1,2])");
    assert!(shown.contains(&words) && shown.contains("log scrubbed"), "{shown}");
    for replica in 0..3 {
        let status = cluster.status(replica).await.unwrap_or_default();
        assert!(status["applied"].as_u64().unwrap_or(0) < op, "nothing is guessed: {status}");
    }
    (0..3).for_each(|replica| cluster.kill(replica));
    // One disk is mended: the same bit turns back.
    rot_op(&cluster.data(1), op);
    (0..3).for_each(|replica| cluster.start(replica));
    eventually("somebody leads", async || {
        let mut leads = false;
        for replica in 0..3 {
            leads |= cluster.status(replica).await.unwrap_or_default()["serving"] == true;
        }
        leads
    })
    .await;
    accounts.assert_all_there().await;
}

/// Without the codes of a terminal's colours.
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}
