//! What an operator asks of a running cluster, through its HTTP API.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::api::{ADDRESS_DEFAULT, Api, Call, IDEMPOTENCY_KEY};
use crate::desk;
use crate::output::table;

/// How to reach the cluster, and how to show what it says.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Reach {
    /// HTTP APIs of replicas, separated by commas; the first that is reached answers
    #[arg(long, env = crate::api::ADDRESS_VARIABLE, default_value = ADDRESS_DEFAULT)]
    api: String,
    /// How long an answer may take, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
    /// As JSON, exactly as the API answers
    #[arg(long)]
    json: bool,
}

/// A write that is older than this is worth a line.
const DISK_OLD_MS: u64 = 1_000;

/// How fresh what is shown must be
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Freshness {
    /// linearizable, local or `at_least:<op>`
    #[arg(long, default_value = "linearizable")]
    consistency: String,
}

impl Freshness {
    /// As a parameter of a path.
    fn parameter(&self) -> String {
        format!("consistency={}", escaped(&self.consistency))
    }
}

/// How long after its time a replica may say that it had too little of it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

impl Reach {
    pub(crate) fn call(&self, call: Call) -> anyhow::Result<Value> {
        // The replica is told the same time, and what it says at the end of it is worth waiting for.
        let api = Api::new(&self.api, Duration::from_secs(self.timeout).saturating_add(ANSWER_PATIENCE));
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(api.call(call))
    }

    /// Prints the answer as it is, or as `show` puts it for people.
    pub(crate) fn print(
        &self,
        answer: &Value,
        show: impl FnOnce(&Value) -> String,
    ) -> anyhow::Result<ExitCode> {
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(answer)?),
            false => println!("{}", show(answer).trim_end()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Show the cluster: every replica, and who leads
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    reach: Reach,
}

/// Submit a command
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SubmitArguments {
    /// The command as JSON; `-` reads it from standard input
    command: String,
    /// Idempotency key: a repeat under the same key is the same command. Without one, one is drawn
    #[arg(long)]
    key: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

/// Ask the machine
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct QueryArguments {
    /// The query as JSON; `-` reads it from standard input
    query: String,
    #[command(flatten)]
    freshness: Freshness,
    #[command(flatten)]
    reach: Reach,
}

/// Effects: what was asked of the outside world
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum EffectsCommand {
    /// List effects: open ones, and settled ones while they are remembered
    List {
        /// scheduled, ready, started, waiting, parked or settled
        #[arg(long)]
        state: Option<String>,
        /// Of this sink
        #[arg(long)]
        sink: Option<String>,
        /// Of this lane
        #[arg(long)]
        lane: Option<String>,
        /// At most so many
        #[arg(long)]
        limit: Option<u32>,
        /// Where the page before ended
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        freshness: Freshness,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show one effect: attempts, claims, times, last evidence
    Show {
        /// Its id, like 42-0
        id: String,
        #[command(flatten)]
        freshness: Freshness,
        #[command(flatten)]
        reach: Reach,
    },
    Resolve(desk::ResolveArguments),
    Retry(desk::RetryArguments),
    Cancel(desk::CancelArguments),
}

/// Sinks: the outside world
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum SinksCommand {
    /// List sinks
    List {
        #[command(flatten)]
        freshness: Freshness,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show one sink
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        freshness: Freshness,
        #[command(flatten)]
        reach: Reach,
    },
    /// Make or change a sink
    Set(SetSink),
    /// Start nothing at a sink any more; answered once no start can leave anywhere
    Freeze(desk::SinkArguments),
    /// Let a frozen sink go on
    Thaw(desk::SinkArguments),
}

/// Make or change a sink. What is not given is as usual, not as it was
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SetSink {
    /// Its name
    name: String,
    /// What the sink offers: idempotent, probe, transactional, at-most-once or at-least-once. There is no default
    #[arg(long, required_unless_present = "spec")]
    contract: Option<ContractKind>,
    /// With idempotent: how long the sink remembers a key, like 24h
    #[arg(long)]
    window: Option<String>,
    /// With idempotent: a repeat of a failed request is answered with the stored failure
    #[arg(long)]
    replays_errors: bool,
    /// With probe: how long after an attempt its absence is proof, like 30s
    #[arg(long)]
    settle: Option<String>,
    /// The kind's configuration as JSON
    #[arg(long, conflicts_with = "url")]
    config: Option<String>,
    /// With kind http: where to call
    #[arg(long)]
    url: Option<String>,
    /// With --url: private addresses are allowed
    #[arg(long, requires = "url")]
    allow_private: bool,
    /// The kind
    #[arg(long, default_value = "http")]
    kind: String,
    /// How long one attempt may take, like 10s
    #[arg(long, value_name = "SPAN")]
    attempt_timeout: Option<String>,
    /// Attempts under way at once
    #[arg(long)]
    concurrency: Option<u32>,
    /// The whole sink as JSON instead; `-` reads it from standard input
    #[arg(long, conflicts_with_all = ["contract", "config", "url"])]
    spec: Option<String>,
    /// Only if the sink is at this revision; 0: only if there is none
    #[arg(long)]
    revision: Option<u64>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ContractKind {
    Idempotent,
    Probe,
    Transactional,
    AtMostOnce,
    AtLeastOnce,
}

pub(crate) fn status(arguments: &StatusArguments) -> anyhow::Result<ExitCode> {
    let answer = arguments.reach.call(Call::get("/v1/cluster"))?;
    arguments.reach.print(&answer, show_cluster)
}

pub(crate) fn submit(arguments: &SubmitArguments) -> anyhow::Result<ExitCode> {
    // Drawn here and not by the replica: should no answer come, the key is known all the same.
    let key = arguments.key.clone().map_or_else(drawn_key, Ok)?;
    let headers = vec![(IDEMPOTENCY_KEY, key)];
    let body = Some(json_argument(&arguments.command, "the command")?);
    let path = format!("/v1/commands?timeout={}s", arguments.reach.timeout);
    let answer = arguments.reach.call(Call { method: Method::POST, path, headers, body })?;
    arguments.reach.print(&answer, |answer| {
        let effects = list(&answer["effects"]).iter().map(text).collect::<Vec<_>>().join(" ");
        let mut shown = format!("op {}  {}\n", text(&answer["op"]), answer["reply"]);
        if !effects.is_empty() {
            shown.push_str(&format!("effects {effects}\n"));
        }
        shown
    })
}

/// 128 bits that nobody can guess, in hexadecimal.
fn drawn_key() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("the operating system gave no random bits")?;
    anyhow::ensure!(drawn == bytes.len(), "the operating system gave too few random bits");
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

pub(crate) fn query(arguments: &QueryArguments) -> anyhow::Result<ExitCode> {
    let body = Some(json_argument(&arguments.query, "the query")?);
    let (freshness, timeout) = (arguments.freshness.parameter(), arguments.reach.timeout);
    let path = format!("/v1/queries?{freshness}&timeout={timeout}s");
    let answer = arguments.reach.call(Call { method: Method::POST, path, headers: Vec::new(), body })?;
    arguments.reach.print(&answer, |answer| format!("op {}  {}", text(&answer["op"]), answer["answer"]))
}

pub(crate) fn effects(command: &EffectsCommand) -> anyhow::Result<ExitCode> {
    match command {
        EffectsCommand::List { state, sink, lane, limit, cursor, freshness, reach } => {
            let limit = limit.map(|limit| limit.to_string());
            let parameters =
                [("state", state), ("sink", sink), ("lane", lane), ("limit", &limit), ("cursor", cursor)];
            let parameters: Vec<String> = parameters
                .into_iter()
                .filter_map(|(name, value)| Some(format!("{name}={}", escaped(value.as_deref()?))))
                .chain([freshness.parameter()])
                .collect();
            let answer = reach.call(Call::get(format!("/v1/effects?{}", parameters.join("&"))))?;
            reach.print(&answer, show_effects)
        }
        EffectsCommand::Show { id, freshness, reach } => {
            let path = format!("/v1/effects/{}?{}", escaped(id), freshness.parameter());
            let answer = reach.call(Call::get(path))?;
            reach.print(&answer, show_object)
        }
        EffectsCommand::Resolve(arguments) => desk::resolve(arguments),
        EffectsCommand::Retry(arguments) => desk::retry(arguments),
        EffectsCommand::Cancel(arguments) => desk::cancel(arguments),
    }
}

pub(crate) fn sinks(command: &SinksCommand) -> anyhow::Result<ExitCode> {
    match command {
        SinksCommand::List { freshness, reach } => {
            let answer = reach.call(Call::get(format!("/v1/sinks?{}", freshness.parameter())))?;
            reach.print(&answer, show_sinks)
        }
        SinksCommand::Show { name, freshness, reach } => {
            let path = format!("/v1/sinks/{}?{}", escaped(name), freshness.parameter());
            let answer = reach.call(Call::get(path))?;
            reach.print(&answer, show_object)
        }
        SinksCommand::Set(set) => {
            let headers = match set.revision {
                None => Vec::new(),
                Some(0) => vec![("if-none-match", "*".to_owned())],
                Some(revision) => vec![("if-match", format!("\"{revision}\""))],
            };
            let path = format!("/v1/sinks/{}", escaped(&set.name));
            let body = Some(sink_body(set)?);
            let answer = set.reach.call(Call { method: Method::PUT, path, headers, body })?;
            set.reach
                .print(&answer, |answer| format!("{} is at revision {}", set.name, text(&answer["revision"])))
        }
        SinksCommand::Freeze(arguments) => desk::freeze(arguments),
        SinksCommand::Thaw(arguments) => desk::thaw(arguments),
    }
}

fn sink_body(set: &SetSink) -> anyhow::Result<String> {
    if let Some(spec) = &set.spec {
        return json_argument(spec, "--spec");
    }
    let contract = match set.contract.context("--contract is missing")? {
        ContractKind::Idempotent => {
            let window =
                set.window.as_ref().context("--contract idempotent needs --window, like --window 24h")?;
            json!({"idempotent": {"window": window, "replays_errors": set.replays_errors}})
        }
        ContractKind::Probe => {
            let settle = set.settle.as_ref().context("--contract probe needs --settle, like --settle 30s")?;
            json!({"probe": {"settle": settle}})
        }
        ContractKind::Transactional => json!("transactional"),
        ContractKind::AtMostOnce => json!("at_most_once"),
        ContractKind::AtLeastOnce => json!("at_least_once"),
    };
    let config = match (&set.config, &set.url) {
        (Some(config), _) => serde_json::from_str(config).context("--config is no JSON")?,
        (None, Some(url)) => json!({"url": url, "allow_private": set.allow_private}),
        (None, None) => anyhow::bail!("say where the sink is: --url, or --config for all of its options"),
    };
    let mut sink = Map::new();
    sink.insert("contract".into(), contract);
    sink.insert("kind".into(), set.kind.clone().into());
    sink.insert("config".into(), config);
    if let Some(timeout) = &set.attempt_timeout {
        sink.insert("timeout".into(), timeout.clone().into());
    }
    if let Some(concurrency) = set.concurrency {
        sink.insert("concurrency".into(), concurrency.into());
    }
    Ok(Value::Object(sink).to_string())
}

/// JSON from the command line or from standard input, checked before it travels.
pub(crate) fn json_argument(text: &str, what: &str) -> anyhow::Result<String> {
    let mut read = String::new();
    let text = if text == "-" {
        std::io::stdin().read_to_string(&mut read).context("can't read standard input")?;
        &read
    } else {
        text
    };
    let _: &serde_json::value::RawValue =
        serde_json::from_str(text).with_context(|| format!("{what} is no JSON: {text}"))?;
    Ok(text.to_owned())
}

/// For a path or a query string.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' => {
                escaped.push(char::from(byte));
            }
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value in a cell: text without quotes, nothing as nothing.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn rows(heads: &[&str], items: &[Value], cells: impl Fn(&Value) -> Vec<String>) -> String {
    let mut rows = vec![heads.iter().map(|head| (*head).to_owned()).collect()];
    rows.extend(items.iter().map(cells));
    table(&rows)
}

fn show_cluster(cluster: &Value) -> String {
    let heads = ["replica", "role", "status", "view", "op", "commit", "applied", "lag", "checkpoint"];
    let replicas = rows(&heads, list(&cluster["replicas"]), |replica| {
        if let Some(why) = replica["unreachable"].as_str() {
            return vec![text(&replica["replica"]), "unreachable".into(), why.into()];
        }
        let field = |name: &str| text(&replica[name]);
        let view = format!("{}.{}", field("epoch"), field("view"));
        let quarantined = !replica["quarantine"].is_null();
        let status = if quarantined { "quarantined".to_owned() } else { field("status") };
        let mut cells = vec![field("replica"), field("role"), status, view];
        cells.extend(["op", "commit", "applied", "lag", "checkpoint"].map(field));
        cells
    });
    let heads = [
        "disk of",
        "log",
        "in use",
        "checkpoints",
        "in use",
        "free",
        "oldest write",
        "log scrubbed",
        "checkpoints",
    ];
    let reached = |replica: &&Value| replica["unreachable"].is_null();
    let disks: Vec<Value> = list(&cluster["replicas"]).iter().filter(reached).cloned().collect();
    let disks = rows(&heads, &disks, |replica| {
        let disk = &replica["disk"];
        let mib = |value: &Value| format!("{} MiB", value.as_u64().unwrap_or(0).div_ceil(1 << 20));
        let scrubbed = |bytes: &str, rounds: &str| {
            let scrub = &disk["scrub"];
            format!("{}, round {}", mib(&scrub[bytes]), scrub[rounds].as_u64().unwrap_or(0) + 1)
        };
        let sizes =
            ["wal_bytes", "wal_used_bytes", "checkpoints_bytes", "checkpoints_live_bytes", "available_bytes"];
        let mut cells = vec![text(&replica["replica"])];
        cells.extend(sizes.map(|size| mib(&disk[size])));
        cells.push(format!("{} ms", disk["age_ms"]));
        cells.push(scrubbed("wal_bytes", "wal_rounds"));
        cells.push(scrubbed("checkpoints_bytes", "checkpoints_rounds"));
        cells
    });
    let primary = match &cluster["primary"] {
        Value::Null => "no primary".to_owned(),
        primary => format!("primary {primary}"),
    };
    let mut shown = format!("cluster {}  {primary}\n\n{replicas}\n{disks}", text(&cluster["cluster"]));
    for replica in list(&cluster["replicas"]) {
        for problem in problems(replica) {
            shown.push_str(&format!("\nreplica {}: {problem}", replica["replica"]));
        }
        for sink in list(&replica["sinks_not_served"]) {
            let (name, why) = (text(&sink["sink"]), text(&sink["why"]));
            shown.push_str(&format!("\nreplica {} can't serve sink {name}: {why}", replica["replica"]));
        }
    }
    shown
}

/// What a person should know about a replica beside its numbers.
fn problems(replica: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let lost = &replica["unrecoverable"];
    if !lost.is_null() {
        problems.push(format!(
            "no replica has {} any more (asked: {}); nothing goes on until one of them has it again",
            text(&lost["what"]),
            lost["replicas"]
        ));
    }
    if let Some(quarantine) = replica["quarantine"].as_object() {
        let said = |name: &str| match &quarantine[name] {
            Value::Null => "nothing".to_owned(),
            value => text(value),
        };
        let (op, own, majority) = (said("op"), said("digest"), said("majority"));
        problems
            .push(format!("quarantined: op {op} came to {own} here, and to {majority} with most replicas"));
    }
    if let Some(halted) = replica["halted"].as_object() {
        let [op, call, message] = ["op", "call", "message"].map(|name| text(&halted[name]));
        problems.push(format!("halted at op {op}, {call}: {message}"));
    }
    match &*text(&replica["clocks"]) {
        "own_is_off" => {
            problems.push("its clock is more than a second off; it leads only if nobody else can".to_owned())
        }
        "disagree" => problems.push(
            "no majority of clocks agrees what time it is; calls of unknown end are not repeated meanwhile"
                .to_owned(),
        ),
        _ => {}
    }
    if replica["fetching_state"] == true {
        let (sync, applied) = (&replica["sync"], &replica["applied"]);
        let progress = match sync["chunks"].as_u64() {
            Some(chunks) if 0 < chunks => format!(", {} of {chunks} chunks", sync["fetched"]),
            Some(_) | None => String::new(),
        };
        problems.push(format!(
            "fetches a state, for its log can't bring it on from op {applied}: that of op {}{progress}",
            sync["op"]
        ));
    }
    let disk = &replica["disk"];
    if disk["short"] == true {
        let free = disk["available_bytes"].as_u64().unwrap_or(0) >> 20;
        problems.push(format!("its disk has no room for the next checkpoint: {free} MiB free"));
    }
    if DISK_OLD_MS <= disk["age_ms"].as_u64().unwrap_or(0) {
        problems.push(format!("its disk has not answered a write for {} ms", disk["age_ms"]));
    }
    let damaged = &disk["damaged"];
    let found: Vec<String> = [
        ("wal_groups", "groups of its log"),
        ("superblock_copies", "copies of its superblock"),
        ("chunks", "parts of its checkpoints"),
    ]
    .into_iter()
    .filter(|(name, _)| damaged[name].as_u64().is_some_and(|count| 0 < count))
    .map(|(name, what)| format!("{} {what}", damaged[name]))
    .collect();
    if !found.is_empty() {
        problems.push(format!("damage found since it was started: {}", found.join(", ")));
    }
    let intake = &replica["intake"];
    if !intake["slowed_for"].is_null() {
        let (laggard, pause) = (&intake["slowed_for"], &intake["pause_ms"]);
        problems.push(format!(
            "takes commands on more slowly, {pause} ms for 64 KiB, for replica {laggard} lags"
        ));
    }
    problems
}

fn show_effects(answer: &Value) -> String {
    let heads = ["effect", "sink", "lane", "state", "attempts", "outcome", "emitted", "due"];
    let mut shown = rows(&heads, list(&answer["effects"]), |effect| {
        let field = |name: &str| text(&effect[name]);
        let state = match &effect["parked"] {
            Value::Null => field("state"),
            parked => format!("{} ({})", field("state"), text(parked)),
        };
        let mut cells = vec![field("id"), field("sink"), field("lane"), state, field("attempts_count")];
        cells.extend([text(&effect["outcome"]["outcome"]), field("emitted"), field("due")]);
        cells
    });
    if let Some(cursor) = answer["cursor"].as_str() {
        shown.push_str(&format!("\nmore: --cursor {cursor}"));
    }
    shown
}

fn show_sinks(answer: &Value) -> String {
    let heads = ["sink", "contract", "kind", "open", "started", "parked", "frozen", "revision", "at"];
    rows(&heads, list(&answer["sinks"]), |sink| {
        let field = |name: &str| text(&sink[name]);
        let contract = match &sink["contract"] {
            Value::Object(contract) => contract.keys().next().cloned().unwrap_or_default(),
            contract => text(contract),
        };
        let mut cells = vec![field("name"), contract];
        cells.extend(["kind", "open", "started", "parked", "frozen", "revision"].map(field));
        cells.push(text(&sink["config"]["url"]));
        cells
    })
}

/// One line a field; what has fields of its own is indented JSON.
pub(crate) fn show_object(object: &Value) -> String {
    let Some(fields) = object.as_object() else { return object.to_string() };
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let fields: Vec<_> = fields.iter().filter(|(_, value)| !is_empty(value)).collect();
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut shown = String::new();
    for (name, value) in fields {
        let value = match value {
            Value::Array(_) | Value::Object(_) => {
                let pretty = serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string());
                pretty.replace('\n', &format!("\n{:width$}  ", ""))
            }
            value => text(value),
        };
        shown.push_str(&format!("{name:width$}  {value}\n"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_path_is_escaped() {
        assert_eq!(escaped("order/42 ü"), "order%2F42%20%C3%BC");
        assert_eq!(escaped("at_least:7"), "at_least:7");
    }

    #[test]
    fn an_object_is_shown_line_by_line_without_what_is_empty() {
        let shown = show_object(&json!({"id": "1-0", "lane": null, "attempts": [], "outcome": {"a": 1}}));
        assert_eq!(shown, "id       1-0\noutcome  {\n           \"a\": 1\n         }\n");
    }
}
