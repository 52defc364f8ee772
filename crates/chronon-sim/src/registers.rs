//! Registers as a workload: reads, writes and swaps whose answers alone must fit one order, whatever the log says.

use std::collections::BTreeMap;

use chronon_kernel::{
    Answer, Attempt, Consistency, Context, Engine, EngineOptions, QueryContext, RequestResult, SinkName,
    SinkSpec, State, StateMachine, Table, engine,
};
use chronon_vsr::Prng;
use serde::{Deserialize, Serialize};

use crate::checker::linear::{self, Call, Deed};
use crate::{Begun, CallKind, Completed, Quiet, Workload};

/// Registers, each by a number.
#[derive(Clone, Debug, State)]
pub struct Registers {
    cells: Table<u64, u64>,
}

/// What a client asks of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Set {
    /// Hold this.
    To {
        /// The register.
        register: u64,
        /// What it shall hold.
        value: u64,
    },
    /// Hold `value` if it holds `expected`.
    If {
        /// The register.
        register: u64,
        /// What it has to hold; none: nothing yet.
        expected: Option<u64>,
        /// What it shall hold.
        value: u64,
    },
}

impl StateMachine for Registers {
    type Command = Set;
    /// Whether it was set.
    type Reply = bool;
    type Query = u64;
    type Answer = Option<u64>;
    type Effect = ();
    type Outcome = ();
    const VERSION: u32 = 1;

    fn genesis() -> Registers {
        Registers { cells: Table::new() }
    }

    fn apply(&mut self, _: &mut Context<'_, Registers>, set: Set) -> bool {
        let (register, value, sets) = match set {
            Set::To { register, value } => (register, value, true),
            Set::If { register, expected, value } => {
                (register, value, self.cells.get(&register).copied() == expected)
            }
        };
        if sets {
            self.cells.insert(register, value);
        }
        sets
    }

    fn query(&self, _: &QueryContext, register: u64) -> Option<u64> {
        self.cells.get(&register).copied()
    }
}

/// Reads, writes and swaps at a few registers. Every value is written once, so that a stale read has nothing to hide
/// behind, except now and then.
#[derive(Clone, Debug)]
pub struct RegisterWorkload {
    registers: u64,
    values: u64,
}

impl RegisterWorkload {
    /// A workload whose number of registers is drawn.
    pub fn draw(prng: &mut Prng) -> RegisterWorkload {
        RegisterWorkload { registers: prng.between(2, 8), values: 0 }
    }

    fn value(&mut self, prng: &mut Prng) -> u64 {
        self.values += 1;
        if prng.chance(1, 8) { prng.between(1, self.values) } else { self.values }
    }
}

impl Workload for RegisterWorkload {
    fn engine(&self, options: EngineOptions) -> Box<dyn Engine> {
        engine::<Registers>(options)
    }

    fn sinks(&self) -> Vec<(SinkName, SinkSpec)> {
        Vec::new()
    }

    fn setup(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn command(&mut self, prng: &mut Prng) -> Vec<u8> {
        let register = prng.below(self.registers);
        let value = self.value(prng);
        encode(&if prng.chance(1, 2) {
            Set::To { register, value }
        } else {
            // Most of the time something that was written of late.
            let age = prng.below(2 * self.registers + 1);
            Set::If { register, expected: value.checked_sub(age + 1).filter(|value| *value != 0), value }
        })
    }

    fn query(&mut self, prng: &mut Prng) -> Vec<u8> {
        encode(&prng.below(self.registers))
    }

    fn outcome(&self, _: &Attempt) -> Vec<u8> {
        encode(&())
    }

    fn describe_command(&self, command: &[u8]) -> String {
        decode::<Set>(command).map_or_else(|| "what is no command".to_owned(), |it| format!("{it:?}"))
    }

    fn describe_reply(&self, reply: &[u8]) -> String {
        decode::<bool>(reply).map_or_else(|| "what is no reply".to_owned(), |it| format!("{it:?}"))
    }

    fn check_quiet(&self, quiet: &Quiet<'_>) -> Result<(), String> {
        let mut held: BTreeMap<u64, u64> = BTreeMap::new();
        for applied in &quiet.applied {
            let set: Set = decode(applied.command).ok_or("a command can't be read")?;
            let (register, value, sets) = match set {
                Set::To { register, value } => (register, value, true),
                Set::If { register, expected, value } => {
                    (register, value, held.get(&register).copied() == expected)
                }
            };
            if decode::<bool>(applied.reply) != Some(sets) {
                return Err(format!("{set:?} at {:?} was not answered {sets}", applied.at));
            }
            if sets {
                held.insert(register, value);
            }
        }
        Ok(())
    }

    /// What clients saw of each register fits one order.
    fn check_history(&self, completed: &[Completed], unended: &[Begun]) -> Result<(), String> {
        let ended = completed.iter().filter_map(|completed| {
            let returned = Some(completed.completed);
            let (register, deed) = match (&completed.kind, &completed.answer) {
                (
                    CallKind::Query { consistency: Consistency::Linearizable, query },
                    Answer::Answered { answer, .. },
                ) => (decode::<u64>(query)?, Deed::Read(decode(answer)?)),
                (CallKind::Command { body, .. }, Answer::Decided(RequestResult::Replied { reply, .. })) => {
                    done(body, Some(decode(reply)?))?
                }
                _ => return None,
            };
            Some((register, Call { invoked: completed.invoked, returned, deed }))
        });
        let open = unended.iter().filter_map(|begun| {
            let CallKind::Command { body, .. } = &begun.kind else { return None };
            let (register, deed) = done(body, None)?;
            Some((register, Call { invoked: begun.invoked, returned: None, deed }))
        });
        linear::check_all(ended.chain(open)).map_err(|(register, why)| format!("register {register}: {why}"))
    }
}

fn done(body: &[u8], swapped: Option<bool>) -> Option<(u64, Deed)> {
    Some(match decode::<Set>(body)? {
        Set::To { register, value } => (register, Deed::Write(value)),
        Set::If { register, expected, value } => (register, Deed::Swap { expected, new: value, swapped }),
    })
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("registers' types can be written")
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
