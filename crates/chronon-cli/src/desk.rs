//! The desk: what a person decides about effects, whether a sink is called at all, and what is passed over where the
//! machine panics.

use std::process::ExitCode;

use anyhow::Context as _;
use hyper::Method;
use serde_json::{Map, Value};

use crate::api::Call;
use crate::operate::{Reach, escaped, json_argument, show_object, text};

/// Who decides, and why: both are kept with the effect.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Record {
    /// Why
    #[arg(long)]
    reason: Option<String>,
    /// Who says so
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// Settle an effect: what became of it is known, or is given up
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ResolveArguments {
    /// Its id, like 42-0
    id: String,
    /// What became of it
    #[arg(long = "as", value_name = "OUTCOME")]
    settle: Settle,
    /// With `--as delivered`: what the sink answered, as JSON; `-` reads it from standard input
    #[arg(long)]
    outcome: Option<String>,
    #[command(flatten)]
    record: Record,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Settle {
    /// The sink did it
    Delivered,
    /// The sink did not do it, and it is not tried again
    Failed,
    /// Nobody will ever know
    Unknown,
}

/// Try a parked effect again
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RetryArguments {
    /// Its id, like 42-0
    id: String,
    /// Of one in doubt: the sink has certainly not done it
    #[arg(long, conflicts_with = "accept_duplicate")]
    not_delivered: bool,
    /// Of one in doubt: it may be done twice
    #[arg(long)]
    accept_duplicate: bool,
    #[command(flatten)]
    record: Record,
    #[command(flatten)]
    reach: Reach,
}

/// Cancel an effect that can't have started
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CancelArguments {
    /// Its id, like 42-0
    id: String,
    #[command(flatten)]
    record: Record,
    #[command(flatten)]
    reach: Reach,
}

/// A sink, by name
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SinkArguments {
    /// Its name
    name: String,
    #[command(flatten)]
    reach: Reach,
}

/// Get past an op at which execution has halted: the call of the machine that panics is not made
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SkipArguments {
    /// The op, as `status` shows it
    op: u64,
    /// Only if it is this request of the op
    #[arg(long)]
    request: Option<u32>,
    /// Why
    #[arg(long)]
    reason: String,
    /// Who says so
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

pub(crate) fn resolve(arguments: &ResolveArguments) -> anyhow::Result<ExitCode> {
    let ResolveArguments { id, settle, outcome, record, reach } = arguments;
    let mut body = record.body();
    let settle = match (settle, outcome) {
        (Settle::Delivered, None) => {
            anyhow::bail!("--as delivered needs --outcome: what did the sink answer?")
        }
        (Settle::Failed | Settle::Unknown, Some(_)) => {
            anyhow::bail!("--outcome goes with --as delivered only")
        }
        (Settle::Delivered, Some(outcome)) => {
            let outcome = json_argument(outcome, "--outcome")?;
            body.insert("outcome".into(), serde_json::from_str(&outcome).context("--outcome is no JSON")?);
            "delivered"
        }
        (Settle::Failed, None) => "failed",
        (Settle::Unknown, None) => "unknown",
    };
    body.insert("as".into(), settle.into());
    act(id, "resolve", body, reach)
}

pub(crate) fn retry(arguments: &RetryArguments) -> anyhow::Result<ExitCode> {
    let RetryArguments { id, not_delivered, accept_duplicate, record, reach } = arguments;
    let mut body = record.body();
    for (name, said) in [("not_delivered", not_delivered), ("accept_duplicate", accept_duplicate)] {
        if *said {
            body.insert(name.into(), true.into());
        }
    }
    act(id, "retry", body, reach)
}

pub(crate) fn cancel(arguments: &CancelArguments) -> anyhow::Result<ExitCode> {
    act(&arguments.id, "cancel", arguments.record.body(), &arguments.reach)
}

pub(crate) fn freeze(arguments: &SinkArguments) -> anyhow::Result<ExitCode> {
    set_frozen(arguments, "freeze", "is frozen: nothing is started there")
}

pub(crate) fn thaw(arguments: &SinkArguments) -> anyhow::Result<ExitCode> {
    set_frozen(arguments, "thaw", "is not frozen")
}

pub(crate) fn skip(arguments: &SkipArguments) -> anyhow::Result<ExitCode> {
    let SkipArguments { op, request, reason, by, reach } = arguments;
    let mut body = Record { reason: Some(reason.clone()), by: by.clone() }.body();
    if let Some(request) = request {
        body.insert("request".into(), (*request).into());
    }
    let path = format!("/v1/ops/{op}/skip");
    let body = Some(Value::Object(body).to_string());
    let call = Call { method: Method::POST, path, headers: Vec::new(), body };
    let answer = reach.call(call).with_context(|| format!("can't skip anything of op {op}"))?;
    reach.print(&answer, |answer| {
        let say = |halt: &Value| {
            format!("{} of op {}: {}", text(&halt["call"]), text(&halt["op"]), text(&halt["message"]))
        };
        let mut shown = format!("skipped {}", say(&answer["skipped"]));
        if answer["halted"].is_object() {
            shown.push_str(&format!("\nexecution has halted again, at {}", say(&answer["halted"])));
        }
        shown
    })
}

impl Record {
    fn body(&self) -> Map<String, Value> {
        let said = [("reason", &self.reason), ("by", &self.by)];
        said.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.clone()?.into()))).collect()
    }
}

/// An act on an effect is answered with the effect as it then is.
fn act(id: &str, act: &str, body: Map<String, Value>, reach: &Reach) -> anyhow::Result<ExitCode> {
    let path = format!("/v1/effects/{}/{act}", escaped(id));
    let body = Some(Value::Object(body).to_string());
    let call = Call { method: Method::POST, path, headers: Vec::new(), body };
    let answer = reach.call(call).with_context(|| format!("can't {act} effect {id}"))?;
    reach.print(&answer, show_object)
}

fn set_frozen(arguments: &SinkArguments, act: &str, is: &str) -> anyhow::Result<ExitCode> {
    let SinkArguments { name, reach } = arguments;
    let path = format!("/v1/sinks/{}/{act}", escaped(name));
    let answer = reach.call(Call { method: Method::POST, path, headers: Vec::new(), body: None })?;
    reach.print(&answer, |answer| format!("{name} {is} (revision {})", text(&answer["revision"])))
}
