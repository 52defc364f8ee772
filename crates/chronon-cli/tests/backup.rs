//! A state carried away from running processes, and a cluster that begins with it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

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
    std::fs::remove_file(&chunks[0]).unwrap();
    assert_eq!(restore("missing").status.code(), Some(1));
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
