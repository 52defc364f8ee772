//! Golden bytes of every kind of message, and every way in which bytes can be none.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use alloc::{format, vec};

use super::*;
use crate::{CHUNK_LIST_SIZE_MAX, Checksum, Digest, Epoch, Prng, SUFFIX_MAX, View};

const CLUSTER: ClusterId = ClusterId::new(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);

fn entry(op: u64, body: &[u8]) -> Entry {
    entry_with(CLUSTER, op, body)
}

fn entry_with(cluster: ClusterId, op: u64, body: &[u8]) -> Entry {
    let header = EntryHeader {
        cluster,
        born: Stamp { epoch: Epoch::new(1), view: View::new(2) },
        op: Op::new(op),
        parent: Checksum::from_bytes([op as u8 ^ 0xa5; 16]),
        offset: op * 8192,
        timestamp: Timestamp::from_nanos(1_700_000_000_000_000_000 + op),
        commit: Op::new(op - 1),
        release: Release::new(7),
        body_size: body.len() as u32,
        body_checksum: Checksum::of(body),
    };
    Entry::new(header, Arc::from(body)).unwrap()
}

fn headers(ops: impl IntoIterator<Item = u64>) -> Vec<EntryHeader> {
    ops.into_iter().map(|op| entry(op, b"body").header().clone()).collect()
}

/// A field's value that is easy to find in a dump: `0xNN00..00NN`.
fn op(tag: u8) -> Op {
    Op::new(u64::from(tag) << 56 | u64::from(tag))
}

fn op_ref(tag: u8) -> OpRef {
    OpRef { op: op(tag), checksum: Checksum::from_bytes([tag; 16]) }
}

fn applied() -> Applied {
    Applied { op: op(0xa1), digest: Digest(0xa3a3_a3a3_a3a3_a3a2) }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        entry: op_ref(0xcc),
        end: 0x1122_3344_5566_7788,
        timestamp: Timestamp::from_nanos(0x7172_7374_7576_7778),
        digest: Digest(0xd1d2_d3d4_d5d6_d7d8),
        release: Release::new(0x2526_2728),
        root: Some(Checksum::from_bytes([0xcd; 16])),
    }
}

fn identity() -> Identity {
    Identity {
        disk: DiskId::new(0xd1d2_d3d4_d5d6_d7d8_d9da_dbdc_ddde_dfd0),
        acked: op(0xac),
        checkpoint: checkpoint(),
        release: Release::new(0x0807_0605),
        busy: op(0xbb),
    }
}

/// One message of each kind.
fn sample(command: Command) -> Message {
    let payload = match command {
        Command::Prepare => {
            Payload::Prepare { commit_max: op_ref(0xc1), checkpoint: op(0xcc), entry: entry(9, b"nine") }
        }
        Command::PrepareOk => {
            Payload::PrepareOk { entry: op_ref(0xe1), applied: applied(), checkpoint: op(0xcc) }
        }
        Command::Commit => Payload::Commit {
            commit_max: op_ref(0xc1),
            read_round: 0x7170,
            applied: applied(),
            disk_age_us: 0x1415_1617,
            divergence: Divergence::NONE,
        },
        Command::CommitOk => Payload::CommitOk {
            read_round: 0x7170,
            applied: applied(),
            head: op(0xee),
            checkpoint: op(0xcc),
            disk_age_us: 0x1415_1617,
            sync: Some(SyncProgress { op: op(0xab), fetched: 0x21, chunks: 0x2223 }),
        },
        Command::StartViewChange => {
            Payload::StartViewChange { to: Stamp { epoch: Epoch::new(0x31), view: View::new(0x32) } }
        }
        Command::DoViewChange => Payload::DoViewChange {
            log_stamp: LogStamp::adopted(Stamp { epoch: Epoch::new(0x31), view: View::new(0x32) }),
            checkpoint: op(0xcc),
            commit_max: op_ref(0xc1),
            uncertain_from: Some(op(0x99)),
            oldest: op(0x0d),
            suffix: headers([5, 6, 7]),
            bits: SuffixBits { present: 0b101, nack: 0b110 },
        },
        Command::StartView => Payload::StartView {
            commit_max: op_ref(0xc1),
            checkpoint: checkpoint(),
            suffix: headers([5, 6]),
            nonce: 0x4243_4445_4647_4849,
        },
        Command::GetView => Payload::GetView { nonce: 0x4243_4445_4647_4849 },
        Command::GetHeaders => Payload::GetHeaders { top: op_ref(0xe1), bottom: op(0x0b) },
        Command::Headers => Payload::Headers { headers: headers([8, 7, 6]) },
        Command::GetPrepare => Payload::GetPrepare { entry: op_ref(0xe1) },
        Command::Repair => Payload::Repair { entry: entry(9, b"nine") },
        Command::Missing => Payload::Missing { entry: op_ref(0xe1) },
        Command::Ping => Payload::Ping { sent: Instant::from_nanos(0x5152_5354), identity: identity() },
        Command::Pong => Payload::Pong {
            ping_sent: Instant::from_nanos(0x5152_5354),
            wall: Timestamp::from_nanos(0x6162_6364_6566_6768),
            identity: identity(),
        },
        Command::ReadIndex => Payload::ReadIndex { nonce: 0x4243_4445_4647_4849 },
        Command::ReadIndexOk => Payload::ReadIndexOk { nonce: 0x4243_4445_4647_4849, index: op(0x1d) },
        Command::Forward => Payload::Forward { body: b"forwarded".to_vec() },
        Command::GetChunk => Payload::GetChunk { id: Checksum::from_bytes([0xcd; 16]) },
        Command::Chunk => Payload::Chunk { id: Checksum::of_chunk(b"chunk"), bytes: b"chunk".to_vec() },
        Command::MissingChunk => Payload::MissingChunk { id: Checksum::from_bytes([0xcd; 16]) },
        Command::Refused => Payload::Refused {
            disk: identity().disk,
            incarnation: Incarnation::new(0x2122_2324_2526_2728),
            why: PeerRefusal::TwoStarts,
        },
    };
    Message {
        from: ReplicaId::new(0x12),
        incarnation: Incarnation::new(0x2122_2324_2526_2728),
        stamp: Stamp { epoch: Epoch::new(0xe0), view: View::new(0xf0) },
        payload,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fixes size and checksums of bytes that were changed on purpose: a peer with a bug, not a bad line.
fn reseal(bytes: &mut [u8]) {
    let size = bytes.len() as u32;
    bytes[72..76].copy_from_slice(&size.to_le_bytes());
    let carries_entry = bytes[78] == Command::Prepare as u8 || bytes[78] == Command::Repair as u8;
    let body_end = if carries_entry {
        bytes.len().min(256 + ENTRY_HEADER_SIZE)
    } else if bytes[78] == Command::Chunk as u8 {
        256
    } else {
        bytes.len()
    };
    let body = Checksum::of(&bytes[256..body_end]);
    bytes[16..32].copy_from_slice(&body.to_bytes());
    let header = Checksum::of(&bytes[16..256]);
    bytes[..16].copy_from_slice(&header.to_bytes());
}

fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    Message::decode(bytes, CLUSTER)
}

/// Kind, bytes in all, the fields from byte 80 without the zeros after them, checksum of all bytes. Never edit a row:
/// it is what released replicas say. A new layout is a new protocol version.
const GOLDEN: [(Command, usize, &str, &str); 22] = [
    (
        Command::Prepare,
        452,
        "c1000000000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1cc000000000000cc",
        "c658bc99d7b9bf2b26e511f1684e0d43",
    ),
    (
        Command::PrepareOk,
        256,
        "e1000000000000e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1a1000000000000a1a2a3a3a3a3a3a3a3cc000000000000cc",
        "3a11e4dbd1a970b59923f02028024bbf",
    ),
    (
        Command::Commit,
        256,
        "c1000000000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c17071000000000000a1000000000000a1a2a3a3a3a3a3a3a317161514",
        "5549b7eceb18081d012744df4522ed7e",
    ),
    (
        Command::CommitOk,
        256,
        "7071000000000000a1000000000000a1a2a3a3a3a3a3a3a3ee000000000000eecc000000000000cc17161514ab000000000000ab210000002322",
        "989f3de03071f890c8765c00ffde9986",
    ),
    (Command::StartViewChange, 256, "310000000000000032", "301d5c89daf9bf908848fd7ef22573cc"),
    (
        Command::DoViewChange,
        832,
        "31000000000000003200000000000000cc000000000000ccc1000000000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c10d0000000000000d05000600019900000000000099",
        "99234015c3fea67fbef4762172d246c0",
    ),
    (
        Command::StartView,
        640,
        "c1000000000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1cc000000000000cccccccccccccccccccccccccccccccccc88776655443322117877767574737271d8d7d6d5d4d3d2d12827262501cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd4948474645444342",
        "6677e322737f436c55d431e1002339d7",
    ),
    (Command::GetView, 256, "4948474645444342", "23578c40951a0f93814b32f6ac31f46f"),
    (
        Command::GetHeaders,
        256,
        "e1000000000000e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e10b0000000000000b",
        "83dbf9333913ea47ee8aa18e8d06bf92",
    ),
    (Command::Headers, 832, "", "3f6644373502c3e082a8ec9d50608d4d"),
    (
        Command::GetPrepare,
        256,
        "e1000000000000e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1",
        "4d83ec333ac115b9e2a7f188f6d3e50a",
    ),
    (Command::Repair, 452, "", "623057cea2b669726b7c6b72204639cc"),
    (
        Command::Missing,
        256,
        "e1000000000000e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1",
        "d0908066e6d9e02b33a70a1dce838694",
    ),
    (
        Command::Ping,
        256,
        "5453525100000000d0dfdedddcdbdad9d8d7d6d5d4d3d2d1ac000000000000accc000000000000cccccccccccccccccccccccccccccccccc88776655443322117877767574737271d8d7d6d5d4d3d2d12827262501cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd05060708bb000000000000bb",
        "06764557f9843a547e35c90dd5a72ea2",
    ),
    (
        Command::Pong,
        256,
        "54535251000000006867666564636261d0dfdedddcdbdad9d8d7d6d5d4d3d2d1ac000000000000accc000000000000cccccccccccccccccccccccccccccccccc88776655443322117877767574737271d8d7d6d5d4d3d2d12827262501cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd05060708bb000000000000bb",
        "8dbf25dc2883c8d4d0a1a5b0750f45cf",
    ),
    (Command::ReadIndex, 256, "4948474645444342", "3d6b5fbda54bf3b84f24bb3d5a12bbdd"),
    (Command::ReadIndexOk, 256, "49484746454443421d0000000000001d", "70fe34e24aa071cfca7360b689445cc3"),
    (Command::Forward, 265, "", "6b32e75860504e2de052ab9fef1a109b"),
    (Command::GetChunk, 256, "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "73aa8dfebd1037fda72225c7bc8337e0"),
    (Command::Chunk, 261, "f9c95b9ee41850de5ffc42a5c0f0d87b", "a545ac3ee3825420cdd13099b4d3fcc8"),
    (Command::MissingChunk, 256, "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd", "eeec13d7ba1a9794e01c5f44fb5dc691"),
    (
        Command::Refused,
        256,
        "d0dfdedddcdbdad9d8d7d6d5d4d3d2d1282726252423222103",
        "fc482290d8d5422ec5c7fbc66aa0d551",
    ),
];

/// Where nobody differs a Commit ends with zeros, as it did before anybody was judged.
#[test]
fn a_commit_that_names_who_differs_has_these_bytes_and_names_no_voter_that_cannot_be() {
    let mut message = sample(Command::Commit);
    let Payload::Commit { divergence, .. } = &mut message.payload else { unreachable!("it is a Commit") };
    *divergence = Divergence { op: op(0xd5), digest: Some(Digest(0xd6)), voters: 0b10_0101 };
    let mut bytes = message.encode(CLUSTER);
    assert_eq!(hex(&bytes[132..150]), "d5000000000000d501d60000000000000025");
    assert_eq!(decode(&bytes), Ok(message));
    for voters in [1 << crate::VOTERS_MAX, u8::MAX] {
        bytes[149] = voters;
        reseal(&mut bytes);
        assert_eq!(decode(&bytes), Err(DecodeError::Malformed));
    }
    // A digest that is said to be missing is not there.
    (bytes[140], bytes[149]) = (0, 1);
    reseal(&mut bytes);
    assert_eq!(decode(&bytes), Err(DecodeError::Malformed));
}

#[test]
fn every_message_has_the_bytes_that_it_always_had() {
    for (at, command) in Command::ALL.into_iter().enumerate() {
        let bytes = sample(command).encode(CLUSTER);
        let fields = hex(&bytes[80..256]);
        let found =
            (command, bytes.len(), fields.trim_end_matches('0'), &*hex(&Checksum::of(&bytes).to_bytes()));
        assert_eq!(found, GOLDEN[at]);
        assert_eq!(decode(&bytes), Ok(sample(command)));
    }
}

/// The table of `docs/format.md`, by hand: what a reader of another language would write.
#[test]
fn a_header_is_laid_out_as_documented() {
    let bytes = sample(Command::PrepareOk).encode(CLUSTER);
    assert_eq!(bytes.len(), 256);
    assert_eq!(bytes[..16], Checksum::of(&bytes[16..]).to_bytes());
    assert_eq!(bytes[16..32], Checksum::of(&[]).to_bytes());
    assert_eq!(bytes[32..48], core::array::from_fn::<u8, 16, _>(|at| at as u8));
    assert_eq!(bytes[48..56], [0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21]);
    assert_eq!(bytes[56..64], [0xe0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[64..72], [0xf0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[72..76], [0, 1, 0, 0]);
    assert_eq!(bytes[76..78], [3, 0]);
    assert_eq!(bytes[78], 2);
    assert_eq!(bytes[79], 0x12);
    assert_eq!(bytes[80..88], [0xe1, 0, 0, 0, 0, 0, 0, 0xe1]);
    assert_eq!(bytes[88..104], [0xe1; 16]);
    assert_eq!(bytes[104..112], [0xa1, 0, 0, 0, 0, 0, 0, 0xa1]);
    assert_eq!(bytes[112..120], [0xa2, 0xa3, 0xa3, 0xa3, 0xa3, 0xa3, 0xa3, 0xa3]);
    assert_eq!(bytes[120..128], [0xcc, 0, 0, 0, 0, 0, 0, 0xcc]);
    assert_eq!(bytes[128..], [0; 128]);
}

#[test]
fn an_entry_travels_as_its_header_and_its_body() {
    let bytes = sample(Command::Repair).encode(CLUSTER);
    let entry = entry(9, b"nine");
    assert_eq!(bytes[256..448], entry.header().encode());
    assert_eq!(bytes[448..], *b"nine");
    assert_eq!(bytes[16..32], Checksum::of(&entry.header().encode()).to_bytes());
}

#[test]
fn commands_number_themselves_and_nothing_else() {
    for (at, command) in Command::ALL.into_iter().enumerate() {
        assert_eq!(command as usize, at + 1);
        assert_eq!(sample(command).payload.command(), command);
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    for command in Command::ALL {
        let good = sample(command).encode(CLUSTER);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "{command:?} with bit {bit} flipped");
        }
    }
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    for command in Command::ALL {
        let mut bytes = sample(command).encode(CLUSTER);
        for length in 0..bytes.len() {
            let expected = if length < 256 {
                DecodeError::TooShort
            } else {
                DecodeError::Size { found: bytes.len() as u32 }
            };
            assert_eq!(decode(&bytes[..length]), Err(expected), "{command:?} cut to {length}");
        }
        let size = bytes.len() as u32;
        bytes.push(0);
        assert_eq!(decode(&bytes), Err(DecodeError::Size { found: size }));
    }
}

#[test]
fn another_cluster_is_told_apart_from_noise() {
    let other = ClusterId::new(99);
    for command in Command::ALL {
        let bytes = sample(command).encode(CLUSTER);
        let header = bytes.first_chunk().unwrap();
        assert_eq!(Message::decode(&bytes, other), Err(DecodeError::WrongCluster { found: CLUSTER }));
        assert_eq!(Message::size(header, other), Err(DecodeError::WrongCluster { found: CLUSTER }));
        assert_eq!(Message::size(header, CLUSTER), Ok(bytes.len()));
    }
}

#[test]
fn an_entry_of_another_cluster_is_refused_inside_a_message_of_ours() {
    let foreign = entry_with(ClusterId::new(99), 9, b"nine");
    let payloads = [
        Payload::Repair { entry: foreign.clone() },
        Payload::Headers { headers: vec![foreign.header().clone()] },
    ];
    for payload in payloads {
        let bytes = Message { payload, ..sample(Command::Repair) }.encode(CLUSTER);
        assert_eq!(decode(&bytes), Err(DecodeError::Malformed));
    }
}

#[test]
fn a_newer_release_is_stepped_over_and_named() {
    let mut newer_version = sample(Command::Forward).encode(CLUSTER);
    newer_version[76] = 4;
    // Whatever the newer release's body checksum covers.
    newer_version[16] ^= 1;
    let header = Checksum::of(&newer_version[16..256]);
    newer_version[..16].copy_from_slice(&header.to_bytes());
    assert_eq!(decode(&newer_version), Err(DecodeError::UnknownVersion { found: 4 }));
    assert_eq!(Message::size(newer_version.first_chunk().unwrap(), CLUSTER), Ok(newer_version.len()));

    for unknown in (0..=u8::MAX).filter(|byte| Command::ALL.iter().all(|command| *command as u8 != *byte)) {
        let mut bytes = sample(Command::Forward).encode(CLUSTER);
        bytes[78] = unknown;
        reseal(&mut bytes);
        assert_eq!(decode(&bytes), Err(DecodeError::UnknownCommand { found: unknown }));
        assert_eq!(Message::size(bytes.first_chunk().unwrap(), CLUSTER), Ok(bytes.len()));
    }
}

#[test]
fn an_impossible_size_is_refused_before_anything_is_read() {
    for size in [0, 1, 255, MESSAGE_SIZE_MAX as u32 + 1, u32::MAX] {
        let mut bytes = sample(Command::GetView).encode(CLUSTER);
        bytes[72..76].copy_from_slice(&size.to_le_bytes());
        let header = Checksum::of(&bytes[16..256]);
        bytes[..16].copy_from_slice(&header.to_bytes());
        assert_eq!(
            Message::size(bytes.first_chunk().unwrap(), CLUSTER),
            Err(DecodeError::Size { found: size })
        );
        assert_eq!(decode(&bytes), Err(DecodeError::Size { found: size }));
    }
}

#[test]
fn a_body_may_be_empty_or_as_large_as_allowed_and_no_larger() {
    for size in [0, 1, BODY_SIZE_MAX] {
        let body = vec![0xb0; size];
        for payload in [Payload::Repair { entry: entry(9, &body) }, Payload::Forward { body: body.clone() }] {
            let message = Message { payload, ..sample(Command::Forward) };
            assert_eq!(decode(&message.encode(CLUSTER)), Ok(message));
        }
    }
    let bytes = vec![0xc0; CHUNK_LIST_SIZE_MAX];
    let payload = Payload::Chunk { id: Checksum::of_chunk(&bytes), bytes };
    let chunk = Message { payload, ..sample(Command::Chunk) };
    assert_eq!(decode(&chunk.encode(CLUSTER)), Ok(chunk));
    // Fits the largest message, yet is no forwarded body.
    let mut bytes = sample(Command::Forward).encode(CLUSTER);
    bytes.resize(256 + BODY_SIZE_MAX + 1, 0);
    reseal(&mut bytes);
    assert_eq!(decode(&bytes), Err(DecodeError::Malformed));
    bytes.resize(MESSAGE_SIZE_MAX + 1, 0);
    reseal(&mut bytes);
    assert_eq!(decode(&bytes), Err(DecodeError::Size { found: MESSAGE_SIZE_MAX as u32 + 1 }));
}

#[test]
fn bytes_that_must_be_zero_are_looked_at() {
    for command in Command::ALL {
        let mut bytes = sample(command).encode(CLUSTER);
        bytes[255] = 1;
        reseal(&mut bytes);
        assert_eq!(decode(&bytes), Err(DecodeError::Malformed), "{command:?}");
    }
}

#[test]
fn a_kind_without_a_body_takes_none() {
    for command in Command::ALL {
        let mut bytes = sample(command).encode(CLUSTER);
        if bytes.len() == 256 {
            bytes.push(0);
            reseal(&mut bytes);
            assert_eq!(decode(&bytes), Err(DecodeError::Malformed), "{command:?}");
        }
    }
}

#[test]
fn fields_that_contradict_one_another_are_refused() {
    let broken = |command, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sample(command).encode(CLUSTER);
        change(&mut bytes);
        reseal(&mut bytes);
        decode(&bytes)
    };
    let malformed = Err(DecodeError::Malformed);
    // A nonce that no GetView has; a range upside down.
    assert_eq!(broken(Command::GetView, &|bytes| bytes[80..88].fill(0)), malformed);
    assert_eq!(broken(Command::GetHeaders, &|bytes| bytes[80..88].fill(0)), malformed);
    // Bits beyond the suffix; a flag that is neither; an op without its flag.
    assert_eq!(broken(Command::DoViewChange, &|bytes| bytes[136] |= 1 << 3), malformed);
    assert_eq!(broken(Command::DoViewChange, &|bytes| bytes[139] |= 1 << 7), malformed);
    assert_eq!(broken(Command::DoViewChange, &|bytes| bytes[140] = 2), malformed);
    assert_eq!(broken(Command::DoViewChange, &|bytes| bytes[140] = 0), malformed);
    // Headers that do not fill the body, out of order, twice the same, too many.
    for command in [Command::DoViewChange, Command::StartView, Command::Headers] {
        assert_eq!(broken(command, &|bytes| bytes.truncate(bytes.len() - 1)), malformed);
        assert_eq!(broken(command, &|bytes| bytes[256..640].rotate_left(192)), malformed);
        assert_eq!(broken(command, &|bytes| bytes.extend_from_within(bytes.len() - 192..)), malformed);
    }
    let many: Vec<u8> =
        headers(1..=SUFFIX_MAX as u64 + 1).iter().flat_map(|header| header.encode()).collect();
    assert_eq!(
        broken(Command::StartView, &|bytes| bytes.splice(256.., many.clone()).for_each(drop)),
        malformed
    );
    let many: Vec<u8> =
        headers((1..=HEADERS_MAX as u64 + 1).rev()).iter().flat_map(|header| header.encode()).collect();
    assert_eq!(
        broken(Command::Headers, &|bytes| bytes.splice(256.., many.clone()).for_each(drop)),
        malformed
    );
    // An entry with more or less of a body than its header says, or with another; no entry at all.
    for command in [Command::Prepare, Command::Repair] {
        assert_eq!(broken(command, &|bytes| bytes.push(0)), malformed);
        assert_eq!(broken(command, &|bytes| bytes.truncate(bytes.len() - 1)), malformed);
        assert_eq!(broken(command, &|bytes| bytes.truncate(256)), malformed);
        assert_eq!(broken(command, &|bytes| bytes[256] ^= 1), malformed);
        assert_eq!(broken(command, &|bytes| bytes[448] ^= 1), Err(DecodeError::BodyChecksum));
    }
}

#[test]
fn the_longest_suffix_and_the_most_headers_fit() {
    let suffix = headers(1..=SUFFIX_MAX as u64);
    let bits = SuffixBits { present: (1 << SUFFIX_MAX) - 1, nack: (1 << SUFFIX_MAX) - 1 };
    let Payload::DoViewChange { log_stamp, checkpoint, commit_max, uncertain_from, oldest, .. } =
        sample(Command::DoViewChange).payload
    else {
        unreachable!("that is the sample's kind")
    };
    let payloads = [
        Payload::DoViewChange { log_stamp, checkpoint, commit_max, uncertain_from, oldest, suffix, bits },
        Payload::Headers { headers: headers((1..=HEADERS_MAX as u64).rev()) },
        Payload::Headers { headers: Vec::new() },
    ];
    for payload in payloads {
        let message = Message { payload, ..sample(Command::DoViewChange) };
        assert_eq!(decode(&message.encode(CLUSTER)), Ok(message));
    }
}

/// A message of any kind whose every field is drawn.
fn any_message(prng: &mut Prng) -> Message {
    fn any_u64(prng: &mut Prng) -> u64 {
        match prng.below(4) {
            0 => 0,
            1 => u64::MAX,
            2 => prng.below(100),
            _ => prng.next_u64(),
        }
    }
    fn any_op(prng: &mut Prng) -> Op {
        Op::new(any_u64(prng))
    }
    fn any_op_ref(prng: &mut Prng) -> OpRef {
        OpRef { op: any_op(prng), checksum: Checksum::of(&prng.next_u64().to_le_bytes()) }
    }
    fn any_stamp(prng: &mut Prng) -> Stamp {
        Stamp { epoch: Epoch::new(any_u64(prng)), view: View::new(any_u64(prng)) }
    }
    fn any_applied(prng: &mut Prng) -> Applied {
        Applied { op: any_op(prng), digest: Digest(any_u64(prng)) }
    }
    fn any_bytes(prng: &mut Prng) -> Vec<u8> {
        (0..prng.below(2000)).map(|_| prng.next_u64() as u8).collect()
    }
    fn any_entry(prng: &mut Prng) -> Entry {
        entry(prng.between(1, 1 << 40), &any_bytes(prng))
    }
    fn any_headers(prng: &mut Prng, count_max: usize) -> Vec<EntryHeader> {
        let first = prng.between(1, 1 << 40);
        headers(first..first + prng.below(count_max as u64 + 1))
    }
    fn any_checkpoint(prng: &mut Prng) -> Checkpoint {
        Checkpoint {
            entry: any_op_ref(prng),
            end: any_u64(prng),
            timestamp: Timestamp::from_nanos(any_u64(prng)),
            digest: Digest(any_u64(prng)),
            release: Release::new(any_u64(prng) as u32),
            root: prng.chance(1, 2).then(|| any_op_ref(prng).checksum),
        }
    }

    fn any_identity(prng: &mut Prng) -> Identity {
        Identity {
            disk: DiskId::new(u128::from(any_u64(prng)) << 64 | u128::from(any_u64(prng))),
            acked: any_op(prng),
            checkpoint: any_checkpoint(prng),
            release: Release::new(any_u64(prng) as u32),
            busy: any_op(prng),
        }
    }

    let payload = match Command::ALL[prng.below(21) as usize] {
        Command::Prepare => Payload::Prepare {
            commit_max: any_op_ref(prng),
            checkpoint: any_op(prng),
            entry: any_entry(prng),
        },
        Command::PrepareOk => Payload::PrepareOk {
            entry: any_op_ref(prng),
            applied: any_applied(prng),
            checkpoint: any_op(prng),
        },
        Command::Commit => Payload::Commit {
            commit_max: any_op_ref(prng),
            read_round: any_u64(prng),
            applied: any_applied(prng),
            disk_age_us: any_u64(prng) as u32,
            divergence: Divergence {
                op: any_op(prng),
                digest: prng.chance(1, 2).then(|| Digest(any_u64(prng))),
                voters: prng.below(1 << crate::VOTERS_MAX) as u8,
            },
        },
        Command::CommitOk => Payload::CommitOk {
            read_round: any_u64(prng),
            applied: any_applied(prng),
            head: any_op(prng),
            checkpoint: any_op(prng),
            disk_age_us: any_u64(prng) as u32,
            sync: prng.chance(1, 2).then(|| {
                let chunks = any_u64(prng) as u32;
                let fetched = prng.below(u64::from(chunks) + 1) as u32;
                SyncProgress { op: Op::new(any_u64(prng).max(1)), fetched, chunks }
            }),
        },
        Command::StartViewChange => Payload::StartViewChange { to: any_stamp(prng) },
        Command::DoViewChange => {
            let suffix = any_headers(prng, SUFFIX_MAX);
            let mask = (1u16 << suffix.len()) - 1;
            let bits =
                SuffixBits { present: prng.next_u64() as u16 & mask, nack: prng.next_u64() as u16 & mask };
            Payload::DoViewChange {
                log_stamp: LogStamp::adopted(any_stamp(prng)),
                checkpoint: any_op(prng),
                commit_max: any_op_ref(prng),
                uncertain_from: if prng.chance(1, 2) { Some(any_op(prng)) } else { None },
                oldest: any_op(prng),
                suffix,
                bits,
            }
        }
        Command::StartView => Payload::StartView {
            commit_max: any_op_ref(prng),
            checkpoint: any_checkpoint(prng),
            suffix: any_headers(prng, SUFFIX_MAX),
            nonce: any_u64(prng),
        },
        Command::GetView => Payload::GetView { nonce: prng.between(1, u64::MAX) },
        Command::GetHeaders => {
            let top = any_op_ref(prng);
            Payload::GetHeaders { top, bottom: Op::new(prng.between(0, top.op.value())) }
        }
        Command::Headers => {
            let mut headers = any_headers(prng, 20);
            headers.reverse();
            Payload::Headers { headers }
        }
        Command::GetPrepare => Payload::GetPrepare { entry: any_op_ref(prng) },
        Command::Repair => Payload::Repair { entry: any_entry(prng) },
        Command::Missing => Payload::Missing { entry: any_op_ref(prng) },
        Command::Ping => {
            Payload::Ping { sent: Instant::from_nanos(any_u64(prng)), identity: any_identity(prng) }
        }
        Command::Pong => Payload::Pong {
            ping_sent: Instant::from_nanos(any_u64(prng)),
            wall: Timestamp::from_nanos(any_u64(prng)),
            identity: any_identity(prng),
        },
        Command::ReadIndex => Payload::ReadIndex { nonce: any_u64(prng) },
        Command::ReadIndexOk => Payload::ReadIndexOk { nonce: any_u64(prng), index: any_op(prng) },
        Command::Forward => Payload::Forward { body: any_bytes(prng) },
        Command::GetChunk => Payload::GetChunk { id: any_op_ref(prng).checksum },
        Command::Chunk => {
            let bytes = any_bytes(prng);
            Payload::Chunk { id: Checksum::of_chunk(&bytes), bytes }
        }
        Command::MissingChunk => Payload::MissingChunk { id: any_op_ref(prng).checksum },
        Command::Refused => Payload::Refused {
            disk: DiskId::new(u128::from(any_u64(prng))),
            incarnation: Incarnation::new(any_u64(prng)),
            why: PeerRefusal::ALL[prng.below(4) as usize],
        },
    };
    Message {
        from: ReplicaId::new(prng.next_u64() as u8),
        incarnation: Incarnation::new(any_u64(prng)),
        stamp: any_stamp(prng),
        payload,
    }
}

#[test]
fn whatever_is_encoded_is_read_back() {
    for seed in 0..4000 {
        let message = any_message(&mut Prng::new(seed));
        let bytes = message.encode(CLUSTER);
        assert_eq!(Message::size(bytes.first_chunk().unwrap(), CLUSTER), Ok(bytes.len()), "seed {seed}");
        assert_eq!(decode(&bytes), Ok(message), "seed {seed}");
    }
}

#[test]
fn garbage_is_refused_and_never_panics() {
    for seed in 0..4000 {
        let mut prng = Prng::new(seed);
        let bytes: Vec<u8> = (0..prng.below(1000)).map(|_| prng.next_u64() as u8).collect();
        assert!(decode(&bytes).is_err(), "seed {seed}");
    }
}

/// A message that its peer broke before it sealed it: what is accepted all the same has exactly one encoding.
#[test]
fn what_is_accepted_has_one_encoding() {
    let mut accepted = 0;
    for seed in 0..20_000 {
        let mut prng = Prng::new(seed);
        let mut bytes = any_message(&mut prng).encode(CLUSTER);
        for _ in 0..prng.between(1, 4) {
            let at = match prng.below(4) {
                // Version, command, sender.
                0 => prng.between(76, 79),
                // The fields.
                1 | 2 => prng.between(80, 200),
                _ => prng.between(48, bytes.len() as u64 - 1),
            };
            bytes[at as usize] = match prng.below(3) {
                0 => 0,
                1 => bytes[at as usize] ^ 1 << prng.below(8),
                _ => prng.next_u64() as u8,
            };
        }
        match prng.below(8) {
            0 => bytes.truncate(prng.between(256, bytes.len() as u64) as usize),
            1 => bytes.extend_from_within(256..),
            _ => {}
        }
        reseal(&mut bytes);
        if let Ok(message) = decode(&bytes) {
            accepted += 1;
            assert!(message.encode(CLUSTER) == bytes, "seed {seed}");
        }
    }
    assert!(1000 < accepted, "only {accepted} of 20000 got past the first checks");
}
