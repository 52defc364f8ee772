//! `chronon.toml`: what one replica is told. File < environment (`CHRONON__LISTEN__HTTP=…`) < flags.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use chronon_server::{Addresses, Listen, ServerConfig};
use chronon_vsr::{ClusterId, ReplicaId};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use toml::{Table, Value};

/// Variables that begin like this override the file: `__` goes one level down, case does not matter.
const ENVIRONMENT_PREFIX: &str = "CHRONON__";

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The cluster, 32 hex digits. A data directory of another one is refused.
    #[serde(default, deserialize_with = "cluster_id")]
    pub(crate) cluster: Option<String>,
    /// The replica. A data directory of another one is refused.
    pub(crate) replica: Option<u8>,
    /// The data directory; relative to the file.
    pub(crate) data: PathBuf,
    /// Where this replica listens.
    pub(crate) listen: ListenConfig,
    /// Where every replica is reached, by its number.
    #[serde(default)]
    pub(crate) replicas: BTreeMap<String, ReplicaConfig>,
    /// Rhythms and patience.
    #[serde(default, skip_serializing_if = "TimingConfig::is_default")]
    pub(crate) timing: TimingConfig,
    /// How fast checkpoints go.
    #[serde(default, skip_serializing_if = "CheckpointsConfig::is_default")]
    pub(crate) checkpoints: CheckpointsConfig,
}

/// Where a replica listens: `address:port` each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListenConfig {
    pub(crate) peer: SocketAddr,
    pub(crate) client: SocketAddr,
    pub(crate) http: Option<SocketAddr>,
}

/// Where others reach a replica: `host:port` each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplicaConfig {
    #[serde(deserialize_with = "host_and_port")]
    pub(crate) peer: String,
    #[serde(deserialize_with = "host_and_port")]
    pub(crate) client: String,
}

/// Rhythms and patience, in milliseconds. What is not set keeps its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimingConfig {
    #[serde(default, deserialize_with = "millis::<1, 10_000, _>")]
    pub(crate) heartbeat_ms: Option<u64>,
    #[serde(default, deserialize_with = "millis::<10, 60_000, _>")]
    pub(crate) suspicion_min_ms: Option<u64>,
    #[serde(default, deserialize_with = "millis::<10, 60_000, _>")]
    pub(crate) view_change_patience_ms: Option<u64>,
}

/// How fast checkpoints are written and sent, in MiB of state a second. What is not set keeps its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointsConfig {
    pub(crate) write_mib_per_second: Option<NonZeroU32>,
    pub(crate) transfer_mib_per_second: Option<NonZeroU32>,
}

/// Whole milliseconds from `MIN` to `MAX`: with less the replicas would do nothing but beat, with more nobody would
/// notice a failure.
fn millis<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(from)?;
    let millis = value.as_integer().and_then(|value| u64::try_from(value).ok());
    match millis.filter(|millis| (MIN..=MAX).contains(millis)) {
        Some(millis) => Ok(Some(millis)),
        None => Err(D::Error::custom(format!("{value} is none of {MIN} to {MAX} whole milliseconds"))),
    }
}

fn cluster_id<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(from)?;
    if text.len() == 32 && u128::from_str_radix(&text, 16).is_ok() {
        return Ok(Some(text));
    }
    Err(D::Error::custom(format!("{text:?} is not 32 hex digits")))
}

/// A host that is not there is not looked up before it is dialled; but something must be meant as one.
fn host_and_port<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    let parts = text.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    match parts {
        Some(_) => Ok(text),
        None => Err(D::Error::custom(format!("{text:?} is not host:port, with a port of 0 to 65535"))),
    }
}

impl CheckpointsConfig {
    fn is_default(&self) -> bool {
        *self == CheckpointsConfig::default()
    }
}

impl TimingConfig {
    fn is_default(&self) -> bool {
        *self == TimingConfig::default()
    }
}

impl Config {
    /// Reads a file, and lets the environment and then `overrides` have their say.
    pub(crate) fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> anyhow::Result<Config> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("can't read the configuration {}", path.display()))?;
        let mut config: Config =
            toml::from_str(&text).map_err(|error| anyhow::anyhow!(explain(path, &text, &error)))?;
        let mut table: Table = toml::from_str(&text)?;
        let prefixed = environment.into_iter().filter_map(|(name, value)| {
            let path = name.strip_prefix(ENVIRONMENT_PREFIX)?.to_ascii_lowercase().replace("__", ".");
            Some((format!("the variable {name}"), path, value))
        });
        let flagged =
            overrides.iter().map(|(path, value)| (format!("--set {path}"), path.clone(), value.clone()));
        for (source, path, value) in prefixed.chain(flagged) {
            set(&mut table, &path, &value).with_context(|| source.clone())?;
            config = Config::deserialize(Value::Table(table.clone()))
                .map_err(|error| anyhow::anyhow!("{source} = {value:?}: {}", hint(error.message())))?;
        }
        if config.data.is_relative() {
            config.data = path.parent().unwrap_or(Path::new(".")).join(&config.data);
        }
        Ok(config)
    }

    /// What the server is told. `name` is the file, for messages.
    pub(crate) fn server(&self, name: &Path) -> anyhow::Result<ServerConfig> {
        let name = name.display();
        let mut server = ServerConfig::default();
        if let Some(cluster) = &self.cluster {
            let id = u128::from_str_radix(cluster, 16).ok().filter(|_| cluster.len() == 32);
            let id = id.with_context(|| format!("{name}: cluster = {cluster:?} is not 32 hex digits"))?;
            server.cluster = Some(ClusterId::new(id));
        }
        server.replica = self.replica.map(ReplicaId::new);
        server.listen = Listen { peer: self.listen.peer, client: self.listen.client, http: self.listen.http };
        for (number, replica) in &self.replicas {
            let id: u8 = number
                .parse()
                .with_context(|| format!("{name}: [replicas.{number}] must be a replica's number"))?;
            let addresses = Addresses { peer: replica.peer.clone(), client: replica.client.clone() };
            server.replicas.insert(ReplicaId::new(id), addresses);
        }
        let millis = |value: Option<u64>, default: Duration| value.map_or(default, Duration::from_millis);
        let timing = &mut server.timing;
        timing.heartbeat = millis(self.timing.heartbeat_ms, timing.heartbeat);
        timing.suspicion_min = millis(self.timing.suspicion_min_ms, timing.suspicion_min);
        timing.view_change_patience =
            millis(self.timing.view_change_patience_ms, timing.view_change_patience);
        let bytes = |mib: Option<NonZeroU32>, default: u64| {
            mib.map_or(default, |mib| u64::from(mib.get()) * 1024 * 1024)
        };
        let limits = &mut server.limits.checkpoints;
        limits.write_bytes_per_second =
            bytes(self.checkpoints.write_mib_per_second, limits.write_bytes_per_second);
        limits.transfer_bytes_per_second =
            bytes(self.checkpoints.transfer_mib_per_second, limits.transfer_bytes_per_second);
        Ok(server)
    }
}

/// Puts a value where the path says. What reads as a TOML value is one, everything else is a string.
fn set(table: &mut Table, path: &str, text: &str) -> anyhow::Result<()> {
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut place = table;
    let mut keys = path.split('.').peekable();
    while let Some(key) = keys.next() {
        anyhow::ensure!(!key.is_empty(), "{path:?} names no key");
        if keys.peek().is_none() {
            place.insert(key.to_owned(), value);
            break;
        }
        let below = place.entry(key).or_insert_with(|| Value::Table(Table::new()));
        place = below.as_table_mut().with_context(|| format!("{key} holds no keys"))?;
    }
    Ok(())
}

/// `file:line:column: what is wrong`, with the nearest key when one is misspelt.
fn explain(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let message = hint(error.message());
    let Some(span) = error.span() else { return format!("{}: {message}", path.display()) };
    let before = &text[..span.start.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
    // The line says which key it is, where the message does not.
    let key =
        text.lines().nth(line - 1).and_then(|line| line.split_once('=')).map_or("", |(key, _)| key.trim());
    let key = if key.is_empty() || message.contains(key) { String::new() } else { format!("{key}: ") };
    format!("{}:{line}:{column}: {key}{message}", path.display())
}

/// Serde's words on an unknown key, with the nearest one that there is.
fn hint(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next().filter(|_| message.starts_with("unknown field"));
    let Some(unknown) = unknown else { return message.to_owned() };
    let allowed: Vec<&str> = names.collect();
    let nearest = allowed
        .iter()
        .map(|name| (distance(unknown, name), *name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    let meant = nearest.map_or(String::new(), |(_, name)| format!(", did you mean {name:?}?"));
    let separator = if meant.is_empty() { ";" } else { "" };
    format!("unknown key {unknown:?}{meant}{separator} allowed here: {}", allowed.join(", "))
}

/// How many letters must be changed, put in or left out (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
replica = 1
data = "data"

[listen]
peer = "127.0.0.1:7110"
client = "127.0.0.1:7111"
http = "127.0.0.1:7112"

[replicas.0]
peer = "127.0.0.1:7100"
client = "127.0.0.1:7101"
"#;

    /// Each test has a file of its own: they run at the same time.
    fn load(
        name: &str,
        text: &str,
        environment: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Config, String> {
        let directory = std::env::temp_dir().join(format!("chronon-config-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("chronon.toml");
        std::fs::write(&path, text).unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let flags: Vec<(String, String)> = flags.iter().map(own).collect();
        let config = Config::load(&path, environment.iter().map(own), &flags);
        std::fs::remove_dir_all(&directory).unwrap();
        config.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_misspelt_key_is_told_with_file_line_key_and_what_is_allowed() {
        let error = load(
            "typo",
            &GOOD.replace("client = \"127.0.0.1:7111\"", "clinet = \"127.0.0.1:7111\""),
            &[],
            &[],
        )
        .unwrap_err();
        assert!(
            error.contains("chronon.toml:7:1: unknown key \"clinet\", did you mean \"client\"?"),
            "{error}"
        );
        assert!(error.contains("allowed here: peer, client, http"), "{error}");
        let error = load("unlike", &format!("zzz = 1\n{GOOD}"), &[], &[]).unwrap_err();
        assert!(
            error.contains("chronon.toml:1:1: unknown key \"zzz\"; allowed here: cluster, replica"),
            "{error}"
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_told_with_its_place() {
        let error = load("kind", &GOOD.replace("replica = 1", "replica = \"one\""), &[], &[]).unwrap_err();
        assert!(error.contains("chronon.toml:2:11: replica: invalid type: string \"one\""), "{error}");
        let error = load("address", &GOOD.replace("127.0.0.1:7112", "localhost"), &[], &[]).unwrap_err();
        assert!(error.contains("chronon.toml:8:8: http: invalid socket address"), "{error}");
    }

    #[test]
    fn the_environment_overrides_the_file_and_flags_override_both() {
        let environment =
            [("CHRONON__REPLICA", "2"), ("CHRONON__LISTEN__HTTP", "0.0.0.0:80"), ("CHRONON_OTHER", "x")];
        let config = load("environment", GOOD, &environment, &[("replica", "3")]).unwrap();
        assert_eq!(config.replica, Some(3));
        assert_eq!(config.listen.http, Some("0.0.0.0:80".parse().unwrap()));
        let error = load("variable", GOOD, &[("CHRONON__LISTEN__HTPP", "x")], &[]).unwrap_err();
        assert!(
            error.contains("the variable CHRONON__LISTEN__HTPP = \"x\": unknown key \"htpp\""),
            "{error}"
        );
        assert!(error.contains("did you mean \"http\"?"), "{error}");
    }

    #[test]
    fn a_relative_data_directory_lies_beside_the_file() {
        let config = load("data", GOOD, &[], &[]).unwrap();
        assert!(config.data.is_absolute() && config.data.ends_with("data"), "{:?}", config.data);
    }
}
