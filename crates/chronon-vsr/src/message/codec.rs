//! The bytes of a message: a header of 256 bytes, then the body. Little-endian, hand-written, one layout a kind;
//! `docs/format.md` has the tables.
//!
//! The first [`FIELDS_AT`] bytes of the header keep their meaning in every version of the protocol, so that a message
//! of a newer one can be told from noise, stepped over and counted.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{
    Command, DecodeError, Divergence, HEADERS_MAX, Identity, MESSAGE_HEADER_SIZE, MESSAGE_SIZE_MAX, Message,
    PROTOCOL_VERSION, Payload, SuffixBits, SyncProgress,
};
use crate::{
    Applied, BODY_SIZE_MAX, CHUNK_LIST_SIZE_MAX, CHUNK_SIZE_MAX, Checkpoint, Checksum, ClusterId, Digest,
    DiskId, ENTRY_HEADER_SIZE, Entry, EntryHeader, Epoch, Incarnation, Instant, LogStamp, Op, OpRef,
    PeerRefusal, Release, ReplicaId, SUFFIX_MAX, Stamp, Timestamp, VOTERS_MAX, View,
};

/// Where the header's own checksum ends, and what it covers begins.
const COVERED_AT: usize = 16;

/// Where the fields of the kind of message begin. Up to the header's end, unused bytes are zero.
const FIELDS_AT: usize = 80;

const _: () = assert!(SUFFIX_MAX <= u16::BITS as usize, "SuffixBits has a bit for every header of a suffix");
const _: () = assert!(MESSAGE_SIZE_MAX <= u32::MAX as usize);
const _: () = assert!(MESSAGE_HEADER_SIZE + HEADERS_MAX * ENTRY_HEADER_SIZE <= MESSAGE_SIZE_MAX);
const _: () = assert!(SUFFIX_MAX <= HEADERS_MAX);
const _: () = assert!(CHUNK_SIZE_MAX <= CHUNK_LIST_SIZE_MAX);
const _: () = assert!(MESSAGE_HEADER_SIZE + CHUNK_LIST_SIZE_MAX <= MESSAGE_SIZE_MAX);

impl Message {
    /// The bytes of the message: header, then body.
    ///
    /// Panics when the payload is none that a peer would take: that is our bug, and ours to hear of.
    pub fn encode(&self, cluster: ClusterId) -> Vec<u8> {
        let mut fields = Writer { bytes: [0; MESSAGE_HEADER_SIZE], at: FIELDS_AT };
        let body = write_payload(&self.payload, &mut fields);
        let body_size = match &body {
            Body::Entry(entry) => ENTRY_HEADER_SIZE + entry.body().len(),
            Body::Headers(headers) => headers.len() * ENTRY_HEADER_SIZE,
            Body::Bytes(bytes) => bytes.len(),
        };
        let size = MESSAGE_HEADER_SIZE + body_size;
        assert!(size <= MESSAGE_SIZE_MAX);

        let mut message = Vec::with_capacity(size);
        message.extend_from_slice(&fields.bytes);
        match body {
            Body::Entry(entry) => {
                message.extend_from_slice(&entry.header().encode());
                message.extend_from_slice(entry.body());
            }
            Body::Headers(headers) => {
                headers.iter().for_each(|header| message.extend_from_slice(&header.encode()))
            }
            Body::Bytes(bytes) => message.extend_from_slice(bytes),
        }
        assert!(message.len() == size);

        let (header, body) =
            message.split_first_chunk_mut().expect("the header is there since the first line");
        let mut prefix = Writer { bytes: *header, at: COVERED_AT };
        prefix.put(body_checksum(self.payload.command(), body));
        prefix.put(cluster);
        prefix.put(self.incarnation);
        prefix.put(self.stamp);
        prefix.put(u32::try_from(size).expect("MESSAGE_SIZE_MAX fits"));
        prefix.put(PROTOCOL_VERSION);
        prefix.put(self.payload.command() as u8);
        prefix.put(self.from);
        assert!(prefix.at == FIELDS_AT);
        *header = prefix.bytes;
        let checksum = Checksum::of(&header[COVERED_AT..]);
        header[..COVERED_AT].copy_from_slice(&checksum.to_bytes());
        message
    }

    /// How many bytes the message has whose header these are: what a stream reader must wait for. Verifies the
    /// header. A message of a newer release has a size too, so that a reader can step over it.
    pub fn size(header: &[u8; MESSAGE_HEADER_SIZE], cluster: ClusterId) -> Result<usize, DecodeError> {
        Prefix::of(header, cluster).map(|prefix| prefix.size)
    }

    /// Reads a whole message. Never panics, whatever the bytes.
    pub fn decode(bytes: &[u8], cluster: ClusterId) -> Result<Message, DecodeError> {
        let Some((header, body)) = bytes.split_first_chunk() else { return Err(DecodeError::TooShort) };
        let prefix = Prefix::of(header, cluster)?;
        if prefix.size != bytes.len() {
            return Err(DecodeError::Size { found: prefix.size as u32 });
        }
        // Before the body: what its checksum covers is the newer release's to say.
        if prefix.version != PROTOCOL_VERSION {
            return Err(DecodeError::UnknownVersion { found: prefix.version });
        }
        let Some(command) = Command::from_byte(prefix.command) else {
            return Err(DecodeError::UnknownCommand { found: prefix.command });
        };
        if prefix.body_checksum != body_checksum(command, body) {
            return Err(DecodeError::BodyChecksum);
        }
        let mut fields = Reader { rest: &header[FIELDS_AT..] };
        let payload = read_payload(command, &mut fields, body, cluster)?;
        if fields.rest.iter().any(|byte| *byte != 0) {
            return Err(DecodeError::Malformed);
        }
        Ok(Message { from: prefix.from, incarnation: prefix.incarnation, stamp: prefix.stamp, payload })
    }
}

impl Command {
    /// Every kind of message, in the order of their numbers.
    pub const ALL: [Command; 22] = [
        Command::Prepare,
        Command::PrepareOk,
        Command::Commit,
        Command::CommitOk,
        Command::StartViewChange,
        Command::DoViewChange,
        Command::StartView,
        Command::GetView,
        Command::GetHeaders,
        Command::Headers,
        Command::GetPrepare,
        Command::Repair,
        Command::Missing,
        Command::Ping,
        Command::Pong,
        Command::ReadIndex,
        Command::ReadIndexOk,
        Command::Forward,
        Command::GetChunk,
        Command::Chunk,
        Command::MissingChunk,
        Command::Refused,
    ];

    fn from_byte(byte: u8) -> Option<Command> {
        Command::ALL.into_iter().find(|command| *command as u8 == byte)
    }
}

/// What every header begins with, whatever the version: verified.
struct Prefix {
    body_checksum: Checksum,
    incarnation: Incarnation,
    stamp: Stamp,
    size: usize,
    version: u16,
    command: u8,
    from: ReplicaId,
}

impl Prefix {
    fn of(header: &[u8; MESSAGE_HEADER_SIZE], cluster: ClusterId) -> Result<Prefix, DecodeError> {
        let (checksum, covered) = header.split_at(COVERED_AT);
        if checksum != Checksum::of(covered).to_bytes() {
            return Err(DecodeError::HeaderChecksum);
        }
        let mut reader = Reader { rest: covered };
        let body_checksum = reader.take()?;
        let found: ClusterId = reader.take()?;
        if found != cluster {
            return Err(DecodeError::WrongCluster { found });
        }
        let (incarnation, stamp, size) = (reader.take()?, reader.take()?, reader.take::<u32>()?);
        let (version, command, from) = (reader.take()?, reader.take()?, reader.take()?);
        if !(MESSAGE_HEADER_SIZE..=MESSAGE_SIZE_MAX).contains(&(size as usize)) {
            return Err(DecodeError::Size { found: size });
        }
        Ok(Prefix { body_checksum, incarnation, stamp, size: size as usize, version, command, from })
    }
}

/// What a message's body checksum says. Where the body is an entry, it covers the entry's header alone: that names the
/// rest by a checksum of its own, which the entry's parser verifies. So the bytes are hashed once, not twice.
fn body_checksum(command: Command, body: &[u8]) -> Checksum {
    match command {
        Command::Prepare | Command::Repair => Checksum::of(&body[..body.len().min(ENTRY_HEADER_SIZE)]),
        Command::PrepareOk
        | Command::Commit
        | Command::CommitOk
        | Command::StartViewChange
        | Command::DoViewChange
        | Command::StartView
        | Command::GetView
        | Command::GetHeaders
        | Command::Headers
        | Command::GetPrepare
        | Command::Missing
        | Command::Ping
        | Command::Pong
        | Command::ReadIndex
        | Command::ReadIndexOk
        | Command::Forward
        | Command::GetChunk
        | Command::MissingChunk
        | Command::Refused => Checksum::of(body),
        // The header names the whole body by `Checksum::of_chunk`, which the payload's parser verifies.
        Command::Chunk => Checksum::of(&[]),
    }
}

/// What follows the header.
enum Body<'a> {
    Entry(&'a Entry),
    Headers(&'a [EntryHeader]),
    Bytes(&'a [u8]),
}

/// Writes the fields of a payload, and says what its body is.
fn write_payload<'a>(payload: &'a Payload, fields: &mut Writer) -> Body<'a> {
    match payload {
        Payload::Prepare { commit_max, checkpoint, entry } => {
            fields.put(*commit_max);
            fields.put(*checkpoint);
            return Body::Entry(entry);
        }
        Payload::PrepareOk { entry, applied, checkpoint } => {
            fields.put(*entry);
            fields.put(*applied);
            fields.put(*checkpoint);
        }
        Payload::Commit { commit_max, read_round, applied, disk_age_us, divergence } => {
            fields.put(*commit_max);
            fields.put(*read_round);
            fields.put(*applied);
            fields.put(*disk_age_us);
            fields.put(*divergence);
        }
        Payload::CommitOk { read_round, applied, head, checkpoint, disk_age_us, sync } => {
            fields.put(*read_round);
            fields.put(*applied);
            fields.put(*head);
            fields.put(*checkpoint);
            fields.put(*disk_age_us);
            fields.put(*sync);
        }
        Payload::StartViewChange { to } => fields.put(*to),
        Payload::DoViewChange { log_stamp, checkpoint, commit_max, uncertain_from, oldest, suffix, bits } => {
            assert!(suffix.len() <= SUFFIX_MAX);
            assert!(suffix.is_sorted_by(|below, above| below.op < above.op));
            assert!(bits.fit(suffix.len()));
            fields.put(log_stamp.stamp());
            fields.put(*checkpoint);
            fields.put(*commit_max);
            fields.put(*oldest);
            fields.put(bits.present);
            fields.put(bits.nack);
            fields.put(u8::from(uncertain_from.is_some()));
            fields.put(uncertain_from.unwrap_or(Op::ROOT));
            return Body::Headers(suffix);
        }
        Payload::StartView { commit_max, checkpoint, suffix, nonce } => {
            assert!(suffix.len() <= SUFFIX_MAX);
            assert!(suffix.is_sorted_by(|below, above| below.op < above.op));
            fields.put(*commit_max);
            fields.put(*checkpoint);
            fields.put(*nonce);
            return Body::Headers(suffix);
        }
        Payload::GetView { nonce } => {
            assert!(0 < *nonce);
            fields.put(*nonce);
        }
        Payload::GetHeaders { top, bottom } => {
            assert!(*bottom <= top.op);
            fields.put(*top);
            fields.put(*bottom);
        }
        Payload::Headers { headers } => {
            assert!(headers.len() <= HEADERS_MAX);
            assert!(headers.is_sorted_by(|above, below| below.op < above.op));
            return Body::Headers(headers);
        }
        Payload::GetPrepare { entry } => fields.put(*entry),
        Payload::Repair { entry } => return Body::Entry(entry),
        Payload::Missing { entry } => fields.put(*entry),
        Payload::Ping { sent, identity } => {
            fields.put(*sent);
            fields.put(*identity);
        }
        Payload::Pong { ping_sent, wall, identity } => {
            fields.put(*ping_sent);
            fields.put(*wall);
            fields.put(*identity);
        }
        Payload::ReadIndex { nonce } => fields.put(*nonce),
        Payload::ReadIndexOk { nonce, index } => {
            fields.put(*nonce);
            fields.put(*index);
        }
        Payload::Forward { body } => {
            assert!(body.len() <= BODY_SIZE_MAX);
            return Body::Bytes(body);
        }
        Payload::GetChunk { id } => fields.put(*id),
        Payload::Chunk { id, bytes } => {
            assert!(bytes.len() <= CHUNK_LIST_SIZE_MAX);
            fields.put(*id);
            return Body::Bytes(bytes);
        }
        Payload::MissingChunk { id } => fields.put(*id),
        Payload::Refused { disk, incarnation, why } => {
            fields.put(*disk);
            fields.put(*incarnation);
            fields.put(*why);
        }
    }
    Body::Bytes(&[])
}

/// Reads what [`write_payload`] wrote, and the body.
fn read_payload(
    command: Command,
    fields: &mut Reader<'_>,
    body: &[u8],
    cluster: ClusterId,
) -> Result<Payload, DecodeError> {
    let none = || if body.is_empty() { Ok(()) } else { Err(DecodeError::Malformed) };
    match command {
        Command::Prepare => {
            let (commit_max, checkpoint) = (fields.take()?, fields.take()?);
            Ok(Payload::Prepare { commit_max, checkpoint, entry: read_entry(body, cluster)? })
        }
        Command::PrepareOk => {
            none()?;
            Ok(Payload::PrepareOk {
                entry: fields.take()?,
                applied: fields.take()?,
                checkpoint: fields.take()?,
            })
        }
        Command::Commit => {
            none()?;
            let (commit_max, read_round) = (fields.take()?, fields.take()?);
            let (applied, disk_age_us): (Applied, u32) = (fields.take()?, fields.take()?);
            let divergence: Divergence = fields.take()?;
            if usize::from(divergence.voters) >> VOTERS_MAX != 0 {
                return Err(DecodeError::Malformed);
            }
            Ok(Payload::Commit { commit_max, read_round, applied, disk_age_us, divergence })
        }
        Command::CommitOk => {
            none()?;
            let (read_round, applied, head) = (fields.take()?, fields.take()?, fields.take()?);
            let (checkpoint, disk_age_us, sync) = (fields.take()?, fields.take()?, fields.take()?);
            Ok(Payload::CommitOk { read_round, applied, head, checkpoint, disk_age_us, sync })
        }
        Command::StartViewChange => {
            none()?;
            Ok(Payload::StartViewChange { to: fields.take()? })
        }
        Command::DoViewChange => {
            let log_stamp = LogStamp::adopted(fields.take()?);
            let (checkpoint, commit_max, oldest) = (fields.take()?, fields.take()?, fields.take()?);
            let bits = SuffixBits { present: fields.take()?, nack: fields.take()? };
            let uncertain_from = match (fields.take::<u8>()?, fields.take::<Op>()?) {
                (0, Op::ROOT) => None,
                (1, op) => Some(op),
                _ => return Err(DecodeError::Malformed),
            };
            let suffix = read_headers(body, cluster, SUFFIX_MAX)?;
            if !suffix.is_sorted_by(|below, above| below.op < above.op) || !bits.fit(suffix.len()) {
                return Err(DecodeError::Malformed);
            }
            Ok(Payload::DoViewChange {
                log_stamp,
                checkpoint,
                commit_max,
                uncertain_from,
                oldest,
                suffix,
                bits,
            })
        }
        Command::StartView => {
            let (commit_max, checkpoint, nonce) = (fields.take()?, fields.take()?, fields.take()?);
            let suffix = read_headers(body, cluster, SUFFIX_MAX)?;
            if !suffix.is_sorted_by(|below, above| below.op < above.op) {
                return Err(DecodeError::Malformed);
            }
            Ok(Payload::StartView { commit_max, checkpoint, suffix, nonce })
        }
        Command::GetView => {
            none()?;
            let nonce = fields.take()?;
            if nonce == 0 { Err(DecodeError::Malformed) } else { Ok(Payload::GetView { nonce }) }
        }
        Command::GetHeaders => {
            none()?;
            let (top, bottom): (OpRef, Op) = (fields.take()?, fields.take()?);
            if bottom <= top.op {
                Ok(Payload::GetHeaders { top, bottom })
            } else {
                Err(DecodeError::Malformed)
            }
        }
        Command::Headers => {
            let headers = read_headers(body, cluster, HEADERS_MAX)?;
            if !headers.is_sorted_by(|above, below| below.op < above.op) {
                return Err(DecodeError::Malformed);
            }
            Ok(Payload::Headers { headers })
        }
        Command::GetPrepare => {
            none()?;
            Ok(Payload::GetPrepare { entry: fields.take()? })
        }
        Command::Repair => Ok(Payload::Repair { entry: read_entry(body, cluster)? }),
        Command::Missing => {
            none()?;
            Ok(Payload::Missing { entry: fields.take()? })
        }
        Command::Ping => {
            none()?;
            Ok(Payload::Ping { sent: fields.take()?, identity: fields.take()? })
        }
        Command::Pong => {
            none()?;
            Ok(Payload::Pong { ping_sent: fields.take()?, wall: fields.take()?, identity: fields.take()? })
        }
        Command::ReadIndex => {
            none()?;
            Ok(Payload::ReadIndex { nonce: fields.take()? })
        }
        Command::ReadIndexOk => {
            none()?;
            Ok(Payload::ReadIndexOk { nonce: fields.take()?, index: fields.take()? })
        }
        Command::Forward => {
            if BODY_SIZE_MAX < body.len() {
                return Err(DecodeError::Malformed);
            }
            Ok(Payload::Forward { body: body.to_vec() })
        }
        Command::GetChunk => {
            none()?;
            Ok(Payload::GetChunk { id: fields.take()? })
        }
        Command::Chunk => {
            let id = fields.take()?;
            if CHUNK_LIST_SIZE_MAX < body.len() {
                return Err(DecodeError::Malformed);
            }
            if Checksum::of_chunk(body) != id {
                return Err(DecodeError::BodyChecksum);
            }
            Ok(Payload::Chunk { id, bytes: body.to_vec() })
        }
        Command::MissingChunk => {
            none()?;
            Ok(Payload::MissingChunk { id: fields.take()? })
        }
        Command::Refused => {
            none()?;
            Ok(Payload::Refused { disk: fields.take()?, incarnation: fields.take()?, why: fields.take()? })
        }
    }
}

fn read_entry(body: &[u8], cluster: ClusterId) -> Result<Entry, DecodeError> {
    let (header, body) = body.split_first_chunk().ok_or(DecodeError::Malformed)?;
    let header = read_header(header, cluster)?;
    if header.body_size as usize != body.len() {
        return Err(DecodeError::Malformed);
    }
    Entry::new(header, Arc::from(body)).ok_or(DecodeError::BodyChecksum)
}

fn read_headers(body: &[u8], cluster: ClusterId, count_max: usize) -> Result<Vec<EntryHeader>, DecodeError> {
    let (headers, rest) = body.as_chunks();
    if !rest.is_empty() || count_max < headers.len() {
        return Err(DecodeError::Malformed);
    }
    headers.iter().map(|header| read_header(header, cluster)).collect()
}

fn read_header(bytes: &[u8; ENTRY_HEADER_SIZE], cluster: ClusterId) -> Result<EntryHeader, DecodeError> {
    EntryHeader::decode(bytes).filter(|header| header.cluster == cluster).ok_or(DecodeError::Malformed)
}

impl SuffixBits {
    /// Whether no bit speaks of a header beyond `count`.
    fn fit(self, count: usize) -> bool {
        let beyond = u16::MAX.checked_shl(count as u32).unwrap_or(0);
        (self.present | self.nack) & beyond == 0
    }
}

/// Puts one field after another into a header.
struct Writer {
    bytes: [u8; MESSAGE_HEADER_SIZE],
    at: usize,
}

impl Writer {
    fn put(&mut self, field: impl Field) {
        field.put(self);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

/// Takes one field after another out of a header.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<F: Field>(&mut self) -> Result<F, DecodeError> {
        F::take(self)
    }

    fn take_bytes<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (first, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Malformed)?;
        self.rest = rest;
        Ok(*first)
    }
}

/// Something with a fixed number of bytes in a header.
trait Field: Sized {
    fn put(&self, to: &mut Writer);
    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

macro_rules! integer_fields {
    ($($integer:ty),*) => {$(
        impl Field for $integer {
            fn put(&self, to: &mut Writer) {
                to.put_bytes(&self.to_le_bytes());
            }

            fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                from.take_bytes().map(<$integer>::from_le_bytes)
            }
        }
    )*};
}

integer_fields!(u8, u16, u32, u64, u128);

/// Fields that are one value of another type: how to make it, and how to get it back.
macro_rules! wrapped_fields {
    ($($name:ty = $make:path, $value:path;)*) => {$(
        impl Field for $name {
            fn put(&self, to: &mut Writer) {
                to.put($value(*self));
            }

            fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                from.take().map($make)
            }
        }
    )*};
}

wrapped_fields! {
    ClusterId = ClusterId::new, ClusterId::value;
    DiskId = DiskId::new, DiskId::value;
    ReplicaId = ReplicaId::new, ReplicaId::value;
    Incarnation = Incarnation::new, Incarnation::value;
    Epoch = Epoch::new, Epoch::value;
    View = View::new, View::value;
    Op = Op::new, Op::value;
    Release = Release::new, Release::value;
    Instant = Instant::from_nanos, Instant::nanos;
    Timestamp = Timestamp::from_nanos, Timestamp::nanos;
}

impl Field for Checksum {
    fn put(&self, to: &mut Writer) {
        to.put_bytes(&self.to_bytes());
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        from.take_bytes().map(Checksum::from_bytes)
    }
}

/// Fields made of fields, in this order.
macro_rules! composed_fields {
    ($($name:ident { $($field:ident),* })*) => {$(
        impl Field for $name {
            fn put(&self, to: &mut Writer) {
                $(to.put(self.$field);)*
            }

            fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok($name { $($field: from.take()?),* })
            }
        }
    )*};
}

composed_fields! {
    Stamp { epoch, view }
    OpRef { op, checksum }
    Applied { op, digest }
    Divergence { op, digest, voters }
    Identity { disk, acked, checkpoint, release, busy }
    Checkpoint { entry, end, timestamp, digest, release, root }
}

/// Numbered from 1, in the order of [`PeerRefusal::ALL`].
impl Field for PeerRefusal {
    fn put(&self, to: &mut Writer) {
        let index = PeerRefusal::ALL.iter().position(|why| why == self).expect("all are in ALL");
        to.put(index as u8 + 1);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let index = usize::from(from.take::<u8>()?).checked_sub(1);
        index.and_then(|index| PeerRefusal::ALL.get(index).copied()).ok_or(DecodeError::Malformed)
    }
}

/// A checksum that may be missing: a byte that says so, and zeros in its place.
impl Field for Option<Checksum> {
    fn put(&self, to: &mut Writer) {
        to.put(u8::from(self.is_some()));
        to.put_bytes(&self.map_or([0; 16], Checksum::to_bytes));
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match (from.take::<u8>()?, from.take_bytes::<16>()?) {
            (0, bytes) if bytes == [0; 16] => Ok(None),
            (1, bytes) => Ok(Some(Checksum::from_bytes(bytes))),
            _ => Err(DecodeError::Malformed),
        }
    }
}

/// All zeros when there is none.
impl Field for Option<SyncProgress> {
    fn put(&self, to: &mut Writer) {
        let SyncProgress { op, fetched, chunks } =
            self.unwrap_or(SyncProgress { op: Op::ROOT, fetched: 0, chunks: 0 });
        to.put(op);
        to.put(fetched);
        to.put(chunks);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let sync = SyncProgress { op: from.take()?, fetched: from.take()?, chunks: from.take()? };
        match sync {
            SyncProgress { op: Op::ROOT, fetched: 0, chunks: 0 } => Ok(None),
            SyncProgress { op, fetched, chunks } if op != Op::ROOT && fetched <= chunks => Ok(Some(sync)),
            SyncProgress { .. } => Err(DecodeError::Malformed),
        }
    }
}

/// A digest that may be missing: a byte that says so, and zeros in its place.
impl Field for Option<Digest> {
    fn put(&self, to: &mut Writer) {
        to.put(u8::from(self.is_some()));
        to.put(self.unwrap_or_default());
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match (from.take::<u8>()?, from.take::<Digest>()?) {
            (0, Digest(0)) => Ok(None),
            (1, digest) => Ok(Some(digest)),
            _ => Err(DecodeError::Malformed),
        }
    }
}

impl Field for Digest {
    fn put(&self, to: &mut Writer) {
        to.put(self.0);
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        from.take().map(Digest)
    }
}
