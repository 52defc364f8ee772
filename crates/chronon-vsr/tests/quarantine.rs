//! What a replica in quarantine gives to its peers, and what it takes from those whose state is not to be relied on.

#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

use chronon_vsr::{
    Applied, Checkpoint, Checksum, Digest, DiskId, Divergence, Duration, Event, Identity, Incarnation, Input,
    Instant, Message, Mutations, Now, Op, Output, Payload, Release, Replica, ReplicaId, Timestamp,
};
use world::{Cluster, Faults};

/// Nothing that a replica of the world says comes from this start.
const LATE: Incarnation = Incarnation::new(1_000);

/// A backup that runs in no world any more: what it hears is what a test says.
struct Backup {
    replica: Replica,
    place: u8,
    primary: u8,
    other: u8,
    now: Now,
    round: u64,
}

impl Backup {
    /// One of three, with ops above its newest checkpoint.
    fn settled() -> Backup {
        let mut c = Cluster::with_ring(3, 1, Mutations::NONE, Faults::NONE, Cluster::tiny_ring(6));
        let leads = c.run_until(Duration::from_secs(3), |c| c.primary().is_some());
        assert!(leads, "{}", c.describe());
        let primary = c.primary().expect("it was just waited for");
        let (place, other) = ((primary + 1) % 3, (primary + 2) % 3);
        let ready = c.run_until(Duration::from_secs(10), |c| {
            c.propose_anywhere();
            let (replica, checkpoint) = (c.replica(place), c.checkpoint(place).entry.op);
            Op::new(20) < checkpoint && checkpoint < replica.commit_max().op && !replica.is_fetching_state()
        });
        assert!(ready, "{}", c.describe());
        let now = Now { monotonic: c.now, wall: Timestamp::from_nanos(c.now.nanos()) };
        let mut backup = Backup {
            replica: c.replica(place).clone(),
            place: place as u8,
            primary: primary as u8,
            other: other as u8,
            now,
            round: u64::from(u32::MAX),
        };
        backup.drain();
        let own = *backup.replica.checkpoint();
        for peer in [backup.primary, backup.other] {
            backup.offers(peer, own);
        }
        backup
    }

    fn drain(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        loop {
            match self.replica.poll_output() {
                Output::Wait(_) => return outputs,
                output => outputs.push(output),
            }
        }
    }

    fn hear(&mut self, from: u8, payload: Payload) -> Vec<Output> {
        let stamp = self.replica.stamp();
        let message = Message { from: ReplicaId::new(from), incarnation: LATE, stamp, payload };
        self.replica.handle(self.now, Input::Message(message));
        self.drain()
    }

    /// A peer says who it is, and which checkpoint it has.
    fn offers(&mut self, peer: u8, checkpoint: Checkpoint) -> Vec<Output> {
        let identity = Identity {
            disk: DiskId::new(1_000 + u128::from(peer)),
            acked: Op::new(u64::MAX),
            checkpoint,
            release: Release::new(1),
            busy: Op::ROOT,
        };
        self.hear(peer, Payload::Ping { sent: Instant::ZERO, identity })
    }

    /// The primary names those who differ.
    fn is_told_of(&mut self, diverged: &[u8]) -> Vec<Output> {
        let voters = diverged.iter().fold(0, |bits, place| bits | 1 << place);
        let commit_max = self.replica.commit_max();
        self.round += 1;
        let commit = Payload::Commit {
            commit_max,
            read_round: self.round,
            applied: Applied { op: Op::ROOT, digest: Digest(0) },
            disk_age_us: 0,
            divergence: Divergence { op: commit_max.op, digest: Some(Digest(7)), voters },
        };
        self.hear(self.primary, commit)
    }

    /// A checkpoint of the newest op that it knows to be committed, which it has not itself.
    fn newer(&self) -> Checkpoint {
        let own = self.replica.checkpoint();
        let entry = self.replica.commit_max();
        assert!(own.entry.op < entry.op);
        Checkpoint { entry, end: own.end + 1, root: Some(Checksum::of_chunk(b"a list")), ..*own }
    }
}

fn answers(outputs: &[Output]) -> Vec<&Payload> {
    let chunks = outputs.iter().filter_map(|output| match output {
        Output::Send(_, Message { payload, .. }) => Some(payload),
        _ => None,
    });
    chunks.filter(|payload| matches!(payload, Payload::Chunk { .. } | Payload::MissingChunk { .. })).collect()
}

fn fetches(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Event(Event::SyncStarted { .. })))
}

#[test]
fn a_quarantined_replica_reads_no_chunk_for_a_peer_and_denies_what_it_was_reading_when_it_was_found_out() {
    let bytes = b"of a state".to_vec();
    let id = Checksum::of_chunk(&bytes);
    let mut backup = Backup::settled();
    let (me, to) = (backup.place, ReplicaId::new(backup.other));
    let asked = backup.hear(backup.other, Payload::GetChunk { id });
    assert!(asked.contains(&Output::ReadChunk { to, id }), "{asked:?}");
    backup.is_told_of(&[me]);
    assert!(backup.replica.quarantine().is_some());
    let read = Input::ChunkRead { to, id, bytes: Some(bytes.clone()) };
    backup.replica.handle(backup.now, read.clone());
    assert_eq!(answers(&backup.drain()), [&Payload::MissingChunk { id }]);

    let asked = backup.hear(backup.other, Payload::GetChunk { id });
    assert_eq!(answers(&asked), [&Payload::MissingChunk { id }]);
    assert!(!asked.iter().any(|output| matches!(output, Output::ReadChunk { .. })), "{asked:?}");

    // Once it is over it gives again what it has.
    backup.is_told_of(&[]);
    assert_eq!(backup.replica.quarantine(), None);
    let asked = backup.hear(backup.other, Payload::GetChunk { id });
    assert!(asked.contains(&Output::ReadChunk { to, id }), "{asked:?}");
    backup.replica.handle(backup.now, read);
    assert_eq!(answers(&backup.drain()), [&Payload::Chunk { id, bytes }]);
}

#[test]
fn the_checkpoint_of_one_who_is_known_to_differ_is_not_taken_whenever_it_was_offered() {
    let mut backup = Backup::settled();
    let (me, other) = (backup.place, backup.other);
    // It wants everybody's newer state but that one's.
    backup.is_told_of(&[me, other]);
    let newer = backup.newer();
    let offered = backup.offers(other, newer);
    assert!(!fetches(&offered), "{offered:?}");
    let trusted = backup.is_told_of(&[me]);
    assert!(fetches(&trusted), "{trusted:?}");

    let mut backup = Backup::settled();
    backup.is_told_of(&[me, other]);
    let offered = backup.offers(backup.primary, backup.newer());
    assert!(fetches(&offered), "{offered:?}");
}
