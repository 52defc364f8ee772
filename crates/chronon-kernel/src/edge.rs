//! The edge: between JSON and the encoded bytes that the log holds, for machines behind a trait object.

mod floats;

use core::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::kernel::decode;
use crate::{Refused, StateMachine, quiet};

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
    /// It holds a floating-point number, and the machine does not allow them in what is replicated.
    #[error("the {what} holds a floating-point number; use integers, or allow floats in the machine")]
    Float {
        /// `command`, `outcome`.
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
    Arc::new(MachineEdge::<M>(PhantomData))
}

struct MachineEdge<M>(PhantomData<fn() -> M>);

impl<M: StateMachine> Edge for MachineEdge<M> {
    fn command_from_json(&self, json: &[u8]) -> Result<Vec<u8>, CodecError> {
        let command: M::Command = from_json("command", json)?;
        let bytes = to_bytes::<M, _>("command", &command)?;
        admit::<M>(&command)?;
        Ok(bytes)
    }

    fn check_command(&self, command: &[u8]) -> Result<(), CodecError> {
        let decoded: M::Command = from_bytes("command", command)?;
        if to_bytes::<M, _>("command", &decoded)? != command {
            return Err(CodecError::NotReadBack { what: "command" });
        }
        admit::<M>(&decoded)
    }

    fn reply_to_json(&self, reply: &[u8]) -> Result<String, CodecError> {
        to_json("reply", &from_bytes::<M::Reply>("reply", reply)?)
    }

    fn query_from_json(&self, json: &[u8]) -> Result<Vec<u8>, CodecError> {
        // A query is not replicated: it may hold floats.
        read_back("query", &from_json::<M::Query>("query", json)?)
    }

    fn answer_to_json(&self, answer: &[u8]) -> Result<String, CodecError> {
        to_json("answer", &from_bytes::<M::Answer>("answer", answer)?)
    }

    fn effect_to_json(&self, effect: &[u8]) -> Result<String, CodecError> {
        to_json("effect", &from_bytes::<M::Effect>("effect", effect)?)
    }

    fn outcome_from_json(&self, json: &[u8]) -> Result<Vec<u8>, CodecError> {
        to_bytes::<M, _>("outcome", &from_json::<M::Outcome>("outcome", json)?)
    }
}

fn from_json<T: DeserializeOwned>(what: &'static str, json: &[u8]) -> Result<T, CodecError> {
    let read = quiet::catch(|| serde_json::from_slice(json).map_err(|why| why.to_string()));
    read.and_then(|read| read).map_err(|why| CodecError::Json { what, why })
}

fn to_json<T: Serialize>(what: &'static str, value: &T) -> Result<String, CodecError> {
    let written = quiet::catch(|| serde_json::to_string(value).map_err(|why| why.to_string()));
    written.and_then(|written| written).map_err(|why| CodecError::Json { what, why })
}

fn from_bytes<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    quiet::catch(|| decode(bytes)).ok().flatten().ok_or(CodecError::Bytes { what })
}

/// The bytes of a value that is to be replicated.
fn to_bytes<M: StateMachine, T: Serialize + DeserializeOwned>(
    what: &'static str,
    value: &T,
) -> Result<Vec<u8>, CodecError> {
    if !M::FLOATS_ALLOWED && quiet::catch(|| floats::has_float(value)) != Ok(false) {
        return Err(CodecError::Float { what });
    }
    read_back(what, value)
}

/// The bytes of a value, if they read back as the same value.
fn read_back<T: Serialize + DeserializeOwned>(what: &'static str, value: &T) -> Result<Vec<u8>, CodecError> {
    let survived = quiet::catch(|| {
        let bytes = postcard::to_allocvec(value).ok()?;
        let again: T = decode(&bytes)?;
        (postcard::to_allocvec(&again).ok()? == bytes).then_some(bytes)
    });
    survived.ok().flatten().ok_or(CodecError::NotReadBack { what })
}

fn admit<M: StateMachine>(command: &M::Command) -> Result<(), CodecError> {
    match quiet::catch(|| M::admit(command)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Refused { code, message })) => Err(CodecError::Refused { code, message }),
        Err(message) => Err(CodecError::Refused { code: String::from("admit_panicked"), message }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, QueryContext};
    use serde::Deserialize;

    #[derive(Clone, crate::State)]
    struct Echo;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Command {
        Say { words: Vec<String>, times: u8 },
        Measure(Option<f64>),
        Odd(Odd),
        Refuse,
        Panic,
    }

    /// Only a self-describing format can read this back.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Odd {
        Number(u64),
        Text(String),
    }

    impl StateMachine for Echo {
        type Command = Command;
        type Reply = String;
        type Query = f32;
        type Answer = Vec<u8>;
        type Effect = String;
        type Outcome = Option<f32>;
        const VERSION: u32 = 1;

        fn genesis() -> Echo {
            Echo
        }

        fn admit(command: &Command) -> Result<(), Refused> {
            match command {
                Command::Refuse => Err(Refused { code: "never".into(), message: "not today".into() }),
                Command::Panic => panic!("admit is broken"),
                Command::Say { .. } | Command::Measure(_) | Command::Odd(_) => Ok(()),
            }
        }

        fn apply(&mut self, _: &mut Context<'_, Echo>, _: Command) -> String {
            String::new()
        }

        fn query(&self, _: &QueryContext, _: f32) -> Vec<u8> {
            Vec::new()
        }
    }

    #[test]
    fn a_command_goes_from_json_to_bytes_that_read_back() {
        let edge = edge::<Echo>();
        let bytes = edge.command_from_json(br#"{"Say":{"words":["a","b"],"times":2}}"#).unwrap();
        let say = Command::Say { words: vec!["a".into(), "b".into()], times: 2 };
        assert_eq!(decode::<Command>(&bytes), Some(say));
        assert_eq!(edge.check_command(&bytes), Ok(()));
    }

    #[test]
    fn bad_json_is_refused_with_line_and_column() {
        let json = b"{\"Say\":\n  {\"words\":[1]}}";
        let Err(CodecError::Json { what: "command", why }) = edge::<Echo>().command_from_json(json) else {
            panic!("it was taken");
        };
        assert!(why.contains("line 2 column"), "{why}");
        assert!(edge::<Echo>().command_from_json(b"").is_err());
        assert!(edge::<Echo>().command_from_json(br#"{"Say":{"words":[],"times":2}} x"#).is_err());
    }

    #[test]
    fn a_type_that_its_codec_cannot_read_back_is_refused() {
        let edge = edge::<Echo>();
        assert_eq!(
            edge.command_from_json(br#"{"Odd":"text"}"#),
            Err(CodecError::NotReadBack { what: "command" })
        );
    }

    #[test]
    fn floats_are_refused_in_what_is_replicated_and_nowhere_else() {
        let edge = edge::<Echo>();
        let float = CodecError::Float { what: "command" };
        assert_eq!(edge.command_from_json(br#"{"Measure":1.5}"#), Err(float.clone()));
        assert!(edge.command_from_json(br#"{"Measure":null}"#).is_ok());
        assert_eq!(
            edge.check_command(&postcard::to_allocvec(&Command::Measure(Some(1.0))).unwrap()),
            Err(float)
        );
        assert_eq!(edge.outcome_from_json(b"0.5"), Err(CodecError::Float { what: "outcome" }));
        assert!(edge.query_from_json(b"0.5").is_ok());
    }

    #[test]
    fn admit_is_asked_at_the_edge_and_its_panic_is_a_refusal() {
        let edge = edge::<Echo>();
        let refused = |json: &[u8]| match edge.command_from_json(json) {
            Err(CodecError::Refused { code, message }) => (code, message),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(br#""Refuse""#), ("never".to_owned(), "not today".to_owned()));
        assert_eq!(refused(br#""Panic""#), ("admit_panicked".to_owned(), "admit is broken".to_owned()));
    }

    // Scenario 75.
    #[test]
    fn bytes_that_are_no_command_are_refused_and_so_is_anything_behind_one() {
        let edge = edge::<Echo>();
        let bytes = edge.command_from_json(br#"{"Say":{"words":["a"],"times":2}}"#).unwrap();
        let refused = Err(CodecError::Bytes { what: "command" });
        for cut in 0..bytes.len() {
            assert_eq!(edge.check_command(&bytes[..cut]), refused);
        }
        assert_eq!(edge.check_command(&[&bytes[..], &[0]].concat()), refused);
        // A number written longer than it must be reads as the same command but is other bytes.
        let mut longer = bytes;
        assert_eq!(longer[1], 1, "the count of words");
        longer.splice(1..2, [0x81, 0x00]);
        assert!(decode::<Command>(&longer).is_none() || edge.check_command(&longer).is_err());
    }
}
