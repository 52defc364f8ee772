//! The edge: between JSON and the encoded bytes that the log holds, for machines behind a trait object.

use std::sync::Arc;

use crate::StateMachine;

/// What turns a machine's types from JSON into log bytes and back. Every value that is to be ordered is encoded,
/// decoded and compared here first, so that no type that its codec can't read back ever becomes an op.
pub trait Edge: Send + Sync {
    /// A command from JSON text: decoded, admitted, encoded, read back.
    fn command_from_json(&self, json: &[u8]) -> Result<Vec<u8>, CodecError>;
    /// An already encoded command: decoded, admitted, encoded again and compared.
    fn check_command(&self, command: &[u8]) -> Result<(), CodecError>;
    /// An encoded reply as JSON text.
    fn reply_to_json(&self, reply: &[u8]) -> Result<String, CodecError>;
    /// A query from JSON text.
    fn query_from_json(&self, json: &[u8]) -> Result<Vec<u8>, CodecError>;
    /// An encoded answer as JSON text.
    fn answer_to_json(&self, answer: &[u8]) -> Result<String, CodecError>;
    /// An encoded effect as JSON text.
    fn effect_to_json(&self, effect: &[u8]) -> Result<String, CodecError>;
    /// An outcome from JSON text.
    fn outcome_from_json(&self, json: &[u8]) -> Result<Vec<u8>, CodecError>;
}

/// Why a value can't cross the edge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The JSON does not describe the type.
    #[error("{what} can't be read: {why}")]
    Json {
        /// `command`, `query`, `outcome`.
        what: &'static str,
        /// The parser's words, with line and column.
        why: String,
    },
    /// The bytes are not the type's.
    #[error("the {what}'s bytes can't be decoded")]
    Bytes {
        /// `command`, `reply`, …
        what: &'static str,
    },
    /// The type's encoding can't be read back as the same value: a bug of the machine's types.
    #[error("the {what} does not survive its own encoding; its type needs a self-describing format")]
    NotReadBack {
        /// `command`, `query`, `outcome`.
        what: &'static str,
    },
    /// The machine will not have it.
    #[error("{message}")]
    Refused {
        /// A stable code.
        code: String,
        /// A sentence.
        message: String,
    },
}

/// The edge of a machine.
pub fn edge<M: StateMachine>() -> Arc<dyn Edge> {
    todo!("kernel")
}
