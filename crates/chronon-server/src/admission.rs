//! What is looked at before anything is ordered: sizes, names, and whether the machine's codec can read it back.

use std::sync::Arc;

use chronon_kernel::{COMMAND_SIZE_MAX, CodecError, Edge, NotExecuted, Origin, Request, Submission};
use chronon_sinks::Executors;

/// The most bytes of an Idempotency-Key.
pub(crate) const KEY_SIZE_MAX: usize = 255;

/// The most bytes of a skip's reason, and of the name of who gives it.
const SKIP_TEXT_MAX: usize = 1_024;

/// The edge of this replica.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) edge: Arc<dyn Edge>,
    pub(crate) executors: Executors,
}

/// A request that may be ordered.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    pub(crate) request: Vec<u8>,
    /// An earlier attempt's end is unknown.
    pub(crate) repeat: bool,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

impl Admission {
    /// Turns a submission into a request, or says why not.
    pub(crate) fn admit(&self, submission: Submission) -> Result<Admitted, NotExecuted> {
        let (request, repeat) = match submission {
            Submission::Register { nonce } => (Request::Register { nonce }, false),
            Submission::Command { origin, repeat, body } => {
                if COMMAND_SIZE_MAX < body.len() {
                    let (size, limit) = (body.len() as u64, COMMAND_SIZE_MAX as u64);
                    return Err(NotExecuted::TooLarge { size, limit });
                }
                if let Origin::Key { principal, key } = &origin {
                    check_key(principal, key)?;
                }
                // A repeat is not asked again: its first attempt may be committed, whatever this release thinks.
                if !repeat {
                    self.edge.check_command(&body).map_err(refused)?;
                }
                (Request::Command { origin, body }, repeat)
            }
            Submission::SinkSet { name, spec, expected_revision } => {
                if let Some(spec) = &spec {
                    let check =
                        self.executors.of_kind(&spec.kind).and_then(|kind| kind.check_config(&spec.config));
                    check.map_err(|error| NotExecuted::Refused {
                        code: "sink_config".to_owned(),
                        message: format!("sink {name}: {error}"),
                    })?;
                }
                (Request::SinkSet { name, spec, expected_revision }, false)
            }
            Submission::Desk { effect, act, by } => (Request::Desk { effect, act, by }, false),
            Submission::Skip(skip) => {
                // It must find a place in a log that may be full but for a little.
                if SKIP_TEXT_MAX < skip.by.len() || SKIP_TEXT_MAX < skip.reason.len() {
                    return Err(NotExecuted::Refused {
                        code: "reason".to_owned(),
                        message: format!("\"by\" and \"reason\" have at most {SKIP_TEXT_MAX} bytes"),
                    });
                }
                (Request::Skip(skip), false)
            }
        };
        Ok(Admitted { request: request.encode(), repeat })
    }
}

fn check_key(principal: &str, key: &str) -> Result<(), NotExecuted> {
    let refusal =
        |message: &str| NotExecuted::Refused { code: "key".to_owned(), message: message.to_owned() };
    if key.is_empty() {
        return Err(refusal("an idempotency key has at least one byte"));
    }
    if KEY_SIZE_MAX < key.len() || KEY_SIZE_MAX < principal.len() {
        return Err(refusal("an idempotency key, and its principal, have at most 255 bytes"));
    }
    Ok(())
}

/// A codec's no, in the words of the client protocol.
pub(crate) fn refused(error: CodecError) -> NotExecuted {
    match error {
        CodecError::Refused { code, message } => NotExecuted::Refused { code, message },
        CodecError::Json { .. }
        | CodecError::Bytes { .. }
        | CodecError::NotReadBack { .. }
        | CodecError::Float { .. } => {
            NotExecuted::Refused { code: "codec".to_owned(), message: error.to_string() }
        }
    }
}
