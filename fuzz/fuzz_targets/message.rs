//! Messages between replicas: whatever the bytes, `Message::decode` says what they are or why they are nothing, and
//! what it accepts has exactly one encoding.

#![no_main]

use chronon_vsr::{Checksum, ClusterId, ENTRY_HEADER_SIZE, MESSAGE_HEADER_SIZE, Message};
use libfuzzer_sys::fuzz_target;

const CLUSTER: ClusterId = ClusterId::new(1);

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // No fuzzer guesses a checksum: with them in place it gets to what lies behind.
    if let Some(sealed) = seal(bytes) {
        check(&sealed);
    }
});

fn check(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk()
        && let Ok(size) = Message::size(header, CLUSTER)
        && bytes.len() < size
    {
        assert!(Message::decode(bytes, CLUSTER).is_err());
    }
    if let Ok(message) = Message::decode(bytes, CLUSTER) {
        assert!(message.encode(CLUSTER) == bytes);
    }
}

/// The bytes with cluster, size and checksums as a sender would have set them, inside entries too.
fn seal(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    let size = u32::try_from(bytes.len()).ok()?;
    let (header, body) = bytes.split_first_chunk_mut::<MESSAGE_HEADER_SIZE>()?;
    let command = header[78];
    let carries_entry = command == 1 || command == 12;
    if carries_entry && let Some((entry, content)) = body.split_first_chunk_mut::<ENTRY_HEADER_SIZE>() {
        entry[100..104].copy_from_slice(&(content.len() as u32).to_le_bytes());
        entry[104..120].copy_from_slice(&Checksum::of(content).to_bytes());
        seal_entry_header(entry);
    } else {
        body.as_chunks_mut().0.iter_mut().for_each(seal_entry_header);
    }
    let covered = if carries_entry { body.len().min(ENTRY_HEADER_SIZE) } else { body.len() };
    header[16..32].copy_from_slice(&Checksum::of(&body[..covered]).to_bytes());
    header[32..48].copy_from_slice(&CLUSTER.value().to_le_bytes());
    header[72..76].copy_from_slice(&size.to_le_bytes());
    let checksum = Checksum::of(&header[16..]);
    header[..16].copy_from_slice(&checksum.to_bytes());
    Some(bytes)
}

fn seal_entry_header(header: &mut [u8; ENTRY_HEADER_SIZE]) {
    header[16..32].copy_from_slice(&CLUSTER.value().to_le_bytes());
    header[120..].fill(0);
    let checksum = Checksum::of(&header[16..120]);
    header[..16].copy_from_slice(&checksum.to_bytes());
}
