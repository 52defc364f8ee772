//! Sessions: who sent which request, and what it was answered, so that a repeat is recognised wherever it arrives.

use core::ops::ControlFlow;
use std::sync::Arc;

use imbl::OrdMap;

use crate::chunk::{ChunkReader, ChunkWriter, Groups, RestoreError};
use crate::stored::encoding;
use crate::{Limits, Refusal, RequestId, RequestNumber, RequestResult, SessionId};

/// The session table. What goes when it is full is decided by log order alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    sessions: OrdMap<SessionId, Arc<Session>>,
    nonces: OrdMap<u128, SessionId>,
    /// Sessions by their last use.
    used: OrdMap<u64, SessionId>,
    uses: u64,
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) nonce: u128,
    pub(crate) used: u64,
    pub(crate) replies: OrdMap<u64, RequestResult>,
    pub(crate) bytes: usize,
    /// The highest number whose reply is not kept any more. Nothing up to it is executed again.
    pub(crate) floor: u64,
}

/// What the table knows of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing: execute it.
    New,
    /// This was its result.
    Result(RequestResult),
    /// It can't be executed.
    Refused(Refusal),
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Opens a session, or finds the one that this nonce opened.
    pub(crate) fn register(&mut self, nonce: u128, at: RequestId, limits: &Limits) -> SessionId {
        if let Some(id) = self.nonces.get(&nonce).copied() {
            self.touch(id);
            return id;
        }
        let id = SessionId(at);
        let session = Session { nonce, used: 0, replies: OrdMap::new(), bytes: 0, floor: 0 };
        self.sessions.insert(id, Arc::new(session));
        self.nonces.insert(nonce, id);
        self.touch(id);
        self.make_room(id, limits);
        id
    }

    pub(crate) fn look_up(&self, id: SessionId, number: RequestNumber) -> Known {
        let Some(session) = self.sessions.get(&id) else { return Known::Refused(Refusal::SessionEvicted) };
        if let Some(result) = session.replies.get(&number.0) {
            return Known::Result(result.clone());
        }
        if number.0 <= session.floor {
            return Known::Refused(Refusal::ReplyForgotten { number: number.0 });
        }
        Known::New
    }

    /// Keeps a result; the session's oldest ones go when there are too many.
    pub(crate) fn remember(
        &mut self,
        id: SessionId,
        number: RequestNumber,
        result: RequestResult,
        limits: &Limits,
    ) {
        self.touch(id);
        let session = Arc::make_mut(self.sessions.get_mut(&id).expect("it was looked up before"));
        let before = session.bytes;
        session.bytes += size(&result);
        session.replies.insert(number.0, result);
        while 1 < session.replies.len()
            && (limits.session_replies_max < session.replies.len()
                || limits.session_reply_bytes_max < session.bytes)
        {
            let (oldest, result) = session.replies.get_min().expect("more than one is left").clone();
            session.replies.remove(&oldest);
            session.bytes -= size(&result);
            session.floor = oldest;
        }
        self.bytes = self.bytes + session.bytes - before;
        self.make_room(id, limits);
    }

    /// A repeat counts as a use, so that who is alive stays.
    pub(crate) fn touch(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let session = Arc::make_mut(session);
        self.used.remove(&session.used);
        self.uses += 1;
        session.used = self.uses;
        self.used.insert(self.uses, id);
    }

    /// Drops the sessions that were used longest ago, but never this one.
    fn make_room(&mut self, keep: SessionId, limits: &Limits) {
        while limits.sessions_max < self.sessions.len() || limits.sessions_bytes_max < self.bytes {
            let Some((use_number, id)) = self.used.get_min().copied() else { return };
            if id == keep {
                return;
            }
            self.used.remove(&use_number);
            let session = self.sessions.remove(&id).expect("the index names sessions that exist");
            self.nonces.remove(&session.nonce);
            self.bytes -= session.bytes;
        }
    }

    /// How often a session was used, ever.
    pub(crate) fn uses(&self) -> u64 {
        self.uses
    }

    /// Writes the table; the rest follows from it.
    pub(crate) fn write(
        &self,
        before: Option<(&Sessions, &Groups<SessionId>)>,
        chunks: &mut ChunkWriter<'_>,
    ) -> ControlFlow<(), Groups<SessionId>> {
        let before = before.map(|(sessions, written)| (&sessions.sessions, written));
        chunks.table(&self.sessions, before, &encoding())
    }

    /// Reads what [`Sessions::write`] wrote.
    pub(crate) fn read(uses: u64, chunks: &mut ChunkReader<'_>) -> Result<Sessions, RestoreError> {
        const TABLE: &str = "sessions";
        let entries = chunks.table::<SessionId, Arc<Session>>(TABLE, &encoding())?;
        let mut sessions = Sessions { uses, ..Sessions::default() };
        for (id, session) in &entries {
            let nonce = sessions.nonces.insert(session.nonce, *id);
            let used = sessions.used.insert(session.used, *id);
            let bytes: usize = session.replies.values().map(size).sum();
            if nonce.is_some() || used.is_some() || uses < session.used || bytes != session.bytes {
                let what = "a session does not go together with the others";
                return Err(RestoreError::Inconsistent { table: TABLE, what });
            }
            sessions.bytes += bytes;
        }
        Ok(Sessions { sessions: entries, ..sessions })
    }

    /// The sabotage of `Mutation::ForgetSessions`: sessions stay known, what they did is forgotten.
    pub(crate) fn forget(&mut self) {
        let ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in ids {
            let session = Arc::make_mut(self.sessions.get_mut(&id).expect("just listed"));
            session.replies = OrdMap::new();
            session.bytes = 0;
            session.floor = 0;
        }
        self.bytes = 0;
    }
}

/// What a result costs in memory, roughly.
pub(crate) fn size(result: &RequestResult) -> usize {
    96 + match result {
        RequestResult::Replied { reply, effects, .. } => reply.len() + 16 * effects.len(),
        RequestResult::Aborted { .. }
        | RequestResult::Registered { .. }
        | RequestResult::Done
        | RequestResult::SinkSet { .. }
        | RequestResult::Refused(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { sessions_max: 3, session_replies_max: 4, ..Limits::DEFAULT };

    fn at(op: u64) -> RequestId {
        RequestId { op, request: 0 }
    }

    fn reply(byte: u8, size: usize) -> RequestResult {
        RequestResult::Replied { at: at(1), timestamp: 1, reply: vec![byte; size], effects: Vec::new() }
    }

    #[test]
    fn registering_a_nonce_again_gives_the_same_session() {
        let mut sessions = Sessions::default();
        let id = sessions.register(7, at(1), &LIMITS);
        assert_eq!(sessions.register(7, at(2), &LIMITS), id);
        assert_ne!(sessions.register(8, at(3), &LIMITS), id);
        assert_eq!(sessions.len(), 2);
    }

    // Scenario 35.
    #[test]
    fn the_session_used_longest_ago_is_evicted_and_told_so() {
        let mut sessions = Sessions::default();
        let ids: Vec<SessionId> = (1..=3).map(|n| sessions.register(n.into(), at(n), &LIMITS)).collect();
        sessions.remember(ids[0], RequestNumber(1), reply(1, 1), &LIMITS);
        sessions.register(4, at(4), &LIMITS);
        assert_eq!(
            sessions.look_up(ids[1], RequestNumber(1)),
            Known::Refused(Refusal::SessionEvicted),
            "its last use is the oldest"
        );
        assert_eq!(sessions.look_up(ids[0], RequestNumber(1)), Known::Result(reply(1, 1)));
        assert_eq!(sessions.look_up(ids[2], RequestNumber(1)), Known::New);
        assert_ne!(sessions.register(2, at(5), &LIMITS), ids[1], "an evicted nonce starts anew");
    }

    #[test]
    fn a_number_below_the_window_is_forgotten_and_never_new_again() {
        let mut sessions = Sessions::default();
        let id = sessions.register(1, at(1), &LIMITS);
        for number in [2, 1, 4, 3, 5, 6] {
            assert_eq!(sessions.look_up(id, RequestNumber(number)), Known::New);
            sessions.remember(id, RequestNumber(number), reply(number as u8, 1), &LIMITS);
        }
        for number in [0, 1, 2] {
            let forgotten = Known::Refused(Refusal::ReplyForgotten { number });
            assert_eq!(sessions.look_up(id, RequestNumber(number)), forgotten);
        }
        assert_eq!(sessions.look_up(id, RequestNumber(3)), Known::Result(reply(3, 1)));
        assert_eq!(sessions.look_up(id, RequestNumber(7)), Known::New);
    }

    #[test]
    fn bytes_are_bounded_for_one_session_and_for_all_but_the_newest_reply_stays() {
        let limits = Limits { session_reply_bytes_max: 1_000, sessions_bytes_max: 1_500, ..LIMITS };
        let mut sessions = Sessions::default();
        let one = sessions.register(1, at(1), &limits);
        sessions.remember(one, RequestNumber(1), reply(1, 500), &limits);
        sessions.remember(one, RequestNumber(2), reply(2, 2_000), &limits);
        assert_eq!(
            sessions.look_up(one, RequestNumber(1)),
            Known::Refused(Refusal::ReplyForgotten { number: 1 })
        );
        assert_eq!(sessions.look_up(one, RequestNumber(2)), Known::Result(reply(2, 2_000)));
        let two = sessions.register(2, at(2), &limits);
        sessions.remember(two, RequestNumber(1), reply(1, 100), &limits);
        assert_eq!(sessions.look_up(one, RequestNumber(2)), Known::Refused(Refusal::SessionEvicted));
        assert_eq!(sessions.bytes(), size(&reply(1, 100)));
    }
}
