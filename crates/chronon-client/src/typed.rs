//! A client in the types of one machine.

use std::marker::PhantomData;

use chronon_kernel::{Consistency, StateMachine};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Client, Committed, QueryError, Read, SubmitError, Ticket};

/// A [`Client`] that speaks a machine's types.
#[derive(Debug)]
pub struct TypedClient<M> {
    client: Client,
    machine: PhantomData<fn() -> M>,
}

impl<M> Clone for TypedClient<M> {
    fn clone(&self) -> TypedClient<M> {
        TypedClient { client: self.client.clone(), machine: PhantomData }
    }
}

impl<M: StateMachine> TypedClient<M> {
    /// In the types of `M`, which the cluster must run.
    pub fn new(client: Client) -> TypedClient<M> {
        TypedClient { client, machine: PhantomData }
    }

    /// The client underneath.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Submits a command and says what became of it.
    pub async fn submit(&self, command: &M::Command) -> Result<Committed<M::Reply>, SubmitError> {
        let body = encode(command).ok_or(SubmitError::Codec)?;
        read_reply(self.client.submit(body).await?)
    }

    /// Asks again about a command whose end was unknown.
    pub async fn resume(&self, ticket: Ticket) -> Result<Committed<M::Reply>, SubmitError> {
        read_reply(self.client.resume(ticket).await?)
    }

    /// Asks a query that reflects every write acknowledged before it was asked.
    pub async fn query(&self, query: &M::Query) -> Result<Read<M::Answer>, QueryError> {
        self.query_at(query, Consistency::Linearizable).await
    }

    /// Asks a query, as fresh as is said.
    pub async fn query_at(
        &self,
        query: &M::Query,
        consistency: Consistency,
    ) -> Result<Read<M::Answer>, QueryError> {
        let query = encode(query).ok_or(QueryError::Codec)?;
        let Read { op, answer } = self.client.query(query, consistency).await?;
        let answer = decode(&answer).ok_or(QueryError::Unreadable)?;
        Ok(Read { op, answer })
    }
}

fn read_reply<R: DeserializeOwned>(committed: Committed<Vec<u8>>) -> Result<Committed<R>, SubmitError> {
    let Committed { at, timestamp, reply, effects } = committed;
    let reply = decode(&reply).ok_or(SubmitError::UnreadableReply { at })?;
    Ok(Committed { at, timestamp, reply, effects })
}

/// The value's bytes, if they can be read back as the same value: else a replica would refuse them.
fn encode<T: Serialize + DeserializeOwned>(value: &T) -> Option<Vec<u8>> {
    let bytes = postcard::to_allocvec(value).ok()?;
    let read_back: T = decode(&bytes)?;
    (postcard::to_allocvec(&read_back).ok()? == bytes).then_some(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}
