//! As much of gRPC as a put and a status need: a unary call over HTTP/2, many at once on one connection. That is what
//! etcd's own clients speak, without their code generators.

use std::net::SocketAddr;

use h2::RecvStream;
use h2::client::SendRequest;
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request, header};
use tokio::net::TcpStream;

/// gRPC puts a flag (compressed or not) and a length before each message.
const PREFIX_SIZE: usize = 5;
/// A member's answer is far smaller.
const ANSWER_SIZE_MAX: usize = 1024 * 1024;

/// A connection to a member.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Grpc {
    address: SocketAddr,
    sender: SendRequest<Bytes>,
}

impl Grpc {
    pub(in crate::bench) async fn connect(address: SocketAddr) -> anyhow::Result<Grpc> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        // Its end shows in the calls.
        tokio::spawn(async move { connection.await.ok() });
        Ok(Grpc { address, sender })
    }

    /// Writes one value.
    pub(in crate::bench) async fn put(&self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let mut message = Vec::with_capacity(PREFIX_SIZE + 2 * 3 + key.len() + value.len());
        message.resize(PREFIX_SIZE, 0);
        put_bytes(&mut message, 1, key);
        put_bytes(&mut message, 2, value);
        self.call("/etcdserverpb.KV/Put", message).await.map(|_| ())
    }

    /// Whether this member leads.
    pub(in crate::bench) async fn is_leader(&self) -> anyhow::Result<bool> {
        let status = self.call("/etcdserverpb.Maintenance/Status", vec![0; PREFIX_SIZE]).await?;
        let member = find(&status, 1).and_then(Field::bytes).and_then(|header| find(header, 2)?.number());
        let leader = find(&status, 4).and_then(Field::number);
        Ok(member.is_some() && member == leader)
    }

    /// One call. `message` begins with room for its prefix.
    async fn call(&self, path: &str, mut message: Vec<u8>) -> anyhow::Result<Bytes> {
        let size = u32::try_from(message.len() - PREFIX_SIZE)?;
        message[1..PREFIX_SIZE].copy_from_slice(&size.to_be_bytes());
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{path}", self.address))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(message.into(), true)?;
        let (head, answer) = response.await?.into_parts();
        anyhow::ensure!(head.status.is_success(), "etcd answered {}", head.status);
        let (bytes, trailers) = read(answer).await?;
        // An error without an answer has its status where the headers are.
        check_status(trailers.as_ref().unwrap_or(&head.headers))?;
        anyhow::ensure!(PREFIX_SIZE <= bytes.len(), "etcd answered nothing");
        Ok(Bytes::from(bytes).slice(PREFIX_SIZE..))
    }
}

async fn read(mut answer: RecvStream) -> anyhow::Result<(Vec<u8>, Option<HeaderMap>)> {
    let mut bytes = Vec::new();
    while let Some(part) = answer.data().await {
        let part = part?;
        answer.flow_control().release_capacity(part.len())?;
        anyhow::ensure!(bytes.len() + part.len() <= ANSWER_SIZE_MAX, "etcd answered too much");
        bytes.extend_from_slice(&part);
    }
    Ok((bytes, answer.trailers().await?))
}

fn check_status(headers: &HeaderMap) -> anyhow::Result<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let status = text("grpc-status");
    anyhow::ensure!(status == "0", "etcd refused: {} (status {status})", text("grpc-message"));
    Ok(())
}

// ---- protobuf: two kinds of fields ------------------------------------------------------------------------------

const NUMBER: u64 = 0;
const BYTES: u64 = 2;

fn put_number(message: &mut Vec<u8>, mut number: u64) {
    while 0x80 <= number {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

fn put_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_number(message, field << 3 | BYTES);
    put_number(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(self) -> Option<u64> {
        match self {
            Field::Number(number) => Some(number),
            Field::Bytes(_) => None,
        }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Field::Bytes(bytes) => Some(bytes),
            Field::Number(_) => None,
        }
    }
}

fn take_number(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The first field of this number, if all before it are of the kinds that we know.
fn find(mut message: &[u8], wanted: u64) -> Option<Field<'_>> {
    while !message.is_empty() {
        let tag = take_number(&mut message)?;
        let field = match tag & 7 {
            NUMBER => Field::Number(take_number(&mut message)?),
            BYTES => {
                let size = usize::try_from(take_number(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(size)?;
                message = rest;
                Field::Bytes(bytes)
            }
            _ => return None,
        };
        if tag >> 3 == wanted {
            return Some(field);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_found_and_a_cut_message_is_nothing() {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, &[9; 200]);
        put_number(&mut message, 4 << 3 | NUMBER);
        put_number(&mut message, u64::MAX);
        assert_eq!(find(&message, 1), Some(Field::Bytes(&[9; 200])));
        assert_eq!(find(&message, 4), Some(Field::Number(u64::MAX)));
        assert_eq!(find(&message, 5), None);
        for cut in 0..message.len() {
            assert_eq!(find(&message[..cut], 4), None, "{cut}");
        }
        // No number ends after ten bytes, and no field is longer than its message.
        assert_eq!(find(&[0xff; 20], 1), None);
        assert_eq!(find(&[0x0a, 0x7f, 1], 1), None);
    }

    #[test]
    fn a_put_is_encoded_as_protobuf_says() {
        let mut message = Vec::new();
        put_bytes(&mut message, 1, b"k");
        put_bytes(&mut message, 2, &[7; 128]);
        assert_eq!(&message[..6], &[0x0a, 1, b'k', 0x12, 0x80, 0x01]);
    }
}
