//! The client against scripted replicas.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chronon_client::{Client, ClientOptions, ConnectError, SubmitError};
use chronon_kernel::{
    Answer, Busy, ClientFrame, Consistency, FRAME_HEADER_SIZE, NotExecuted, Origin, Refusal, RequestId,
    RequestResult, ServerFrame, SessionId, Submission, frame_size,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const CLUSTER: u128 = 77;

/// What a scripted replica does with a frame.
enum Act {
    Say(Answer),
    HangUp,
    Nothing,
    Garbage,
}

/// What was submitted, and whether as a repeat.
type Seen = Arc<Mutex<Vec<(u8, u64, bool)>>>;

async fn read_frame(stream: &mut TcpStream) -> Option<ClientFrame> {
    let mut header = [0; FRAME_HEADER_SIZE];
    stream.read_exact(&mut header).await.ok()?;
    let mut frame = header.to_vec();
    frame.resize(frame_size(&header).unwrap(), 0);
    stream.read_exact(&mut frame[FRAME_HEADER_SIZE..]).await.ok()?;
    Some(ClientFrame::decode(&frame).unwrap())
}

/// A replica that registers everybody and treats the n-th command (from 0) as told.
async fn replica(replica: u8, seen: Seen, script: impl Fn(usize) -> Act + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let script = Arc::new(script);
    let count = Arc::new(Mutex::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, replica, seen.clone(), script.clone(), count.clone()));
        }
    });
    address
}

async fn serve(
    mut stream: TcpStream,
    replica: u8,
    seen: Seen,
    script: Arc<impl Fn(usize) -> Act>,
    count: Arc<Mutex<usize>>,
) {
    while let Some(frame) = read_frame(&mut stream).await {
        let (ticket, act) = match frame {
            ClientFrame::Hello { cluster: Some(other), .. } if other != CLUSTER => {
                let goodbye = ServerFrame::Goodbye { why: format!("this is cluster {CLUSTER}") };
                stream.write_all(&goodbye.encode()).await.unwrap();
                return;
            }
            ClientFrame::Hello { .. } => {
                let welcome = ServerFrame::Welcome { cluster: CLUSTER, replica };
                stream.write_all(&welcome.encode()).await.unwrap();
                continue;
            }
            ClientFrame::Submit { ticket, request: Submission::Register { .. }, .. } => {
                let session = SessionId(RequestId { op: 1, request: 0 });
                (ticket, Act::Say(Answer::Decided(RequestResult::Registered { session })))
            }
            ClientFrame::Submit { ticket, request: Submission::Command { origin, repeat, .. }, .. } => {
                let Origin::Session { number, .. } = origin else { panic!("{origin:?}") };
                seen.lock().unwrap().push((replica, number.0, repeat));
                let n = {
                    let mut count = count.lock().unwrap();
                    *count += 1;
                    *count - 1
                };
                (ticket, script(n))
            }
            ClientFrame::Query { ticket, .. } => {
                (ticket, Act::Say(Answer::Answered { op: 9, answer: b"42".to_vec() }))
            }
            other => panic!("{other:?}"),
        };
        match act {
            Act::Say(answer) => {
                let answer = ServerFrame::Answer { ticket, answer };
                stream.write_all(&answer.encode()).await.unwrap();
            }
            Act::HangUp => return,
            Act::Nothing => {}
            Act::Garbage => stream.write_all(&[0xff; 64]).await.unwrap(),
        }
    }
}

fn replied() -> Act {
    let at = RequestId { op: 5, request: 0 };
    Act::Say(Answer::Decided(RequestResult::Replied { at, timestamp: 1, reply: vec![1], effects: vec![] }))
}

fn not_executed(why: NotExecuted) -> Act {
    Act::Say(Answer::NotExecuted(why))
}

fn options() -> ClientOptions {
    ClientOptions { patience: Duration::from_millis(50), ..ClientOptions::default() }
}

#[tokio::test]
async fn a_request_whose_connection_is_lost_is_repeated_under_its_number() {
    let seen = Seen::default();
    let first = replica(0, seen.clone(), |_| Act::HangUp).await;
    let second = replica(1, seen.clone(), |_| replied()).await;
    let client = Client::connect([first, second], options()).await.unwrap();
    assert_eq!(client.submit(vec![7]).await.unwrap().op().value(), 5);
    assert_eq!(*seen.lock().unwrap(), [(0, 1, false), (1, 1, true)]);
    client.submit(vec![7]).await.unwrap();
    assert_eq!(seen.lock().unwrap()[2..], [(1, 2, false)]);
}

#[tokio::test]
async fn a_replica_that_falls_silent_is_left_for_another() {
    let seen = Seen::default();
    let first = replica(0, seen.clone(), |_| Act::Nothing).await;
    let second = replica(1, seen.clone(), |_| replied()).await;
    let client = Client::connect([first, second], options()).await.unwrap();
    client.submit(vec![7]).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [(0, 1, false), (1, 1, true)]);
}

#[tokio::test]
async fn garbage_from_a_replica_ends_the_connection_and_nothing_else() {
    let seen = Seen::default();
    let first = replica(0, seen.clone(), |_| Act::Garbage).await;
    let second = replica(1, seen.clone(), |_| replied()).await;
    let client = Client::connect([first, second], options()).await.unwrap();
    client.submit(vec![7]).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [(0, 1, false), (1, 1, true)]);
}

#[tokio::test]
async fn a_hint_is_followed_and_is_no_repeat() {
    let seen = Seen::default();
    let hint = |primary| move |_| not_executed(NotExecuted::NoPrimary { primary });
    let zero = replica(0, seen.clone(), hint(Some(1))).await;
    let one = replica(1, seen.clone(), hint(None)).await;
    let two = replica(2, seen.clone(), |_| replied()).await;
    let client = Client::connect([zero, one, two], options()).await.unwrap();
    client.submit(vec![7]).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [(0, 1, false), (1, 1, false), (2, 1, false)]);
}

#[tokio::test]
async fn a_busy_replica_is_asked_again() {
    let seen = Seen::default();
    let retry_after = Duration::from_millis(1);
    let busy = move |n| match n {
        0 | 1 => not_executed(NotExecuted::Busy { busy: Busy::QueueFull, retry_after }),
        _ => replied(),
    };
    let client = Client::connect([replica(0, seen.clone(), busy).await], options()).await.unwrap();
    client.submit(vec![7]).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [(0, 1, false); 3]);
}

#[tokio::test]
async fn an_unknown_end_is_told_and_can_be_asked_about_again() {
    let seen = Seen::default();
    let script = |n| if n < 2 { Act::Nothing } else { replied() };
    let client = Client::connect([replica(0, seen.clone(), script).await], options()).await.unwrap();
    let error = client.submit_within(vec![7], Duration::from_millis(100)).await.unwrap_err();
    let SubmitError::Indeterminate { ticket } = error else { panic!("{error:?}") };
    client.resume(ticket).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.first(), Some(&(0, 1, false)));
    assert!(seen[1..].iter().all(|seen| *seen == (0, 1, true)), "{seen:?}");
}

#[tokio::test]
async fn a_refusal_after_an_unknown_end_does_not_make_it_known() {
    let seen = Seen::default();
    let script = |n| match n {
        0 => Act::HangUp,
        _ => not_executed(NotExecuted::Refused { code: "x".into(), message: "x".into() }),
    };
    let client = Client::connect([replica(0, seen.clone(), script).await], options()).await.unwrap();
    let error = client.submit(vec![7]).await.unwrap_err();
    assert!(matches!(error, SubmitError::Indeterminate { .. }), "{error:?}");
    let error = client.submit(vec![7]).await.unwrap_err();
    assert!(matches!(error, SubmitError::NotExecuted(NotExecuted::Refused { .. })), "{error:?}");
}

#[tokio::test]
async fn an_evicted_session_is_told_and_the_next_request_opens_another() {
    let seen = Seen::default();
    let script = |n| match n {
        0 => Act::Say(Answer::Decided(RequestResult::Refused(Refusal::SessionEvicted))),
        _ => replied(),
    };
    let client = Client::connect([replica(0, seen.clone(), script).await], options()).await.unwrap();
    assert_eq!(client.submit(vec![7]).await.unwrap_err(), SubmitError::SessionEvicted);
    client.submit(vec![7]).await.unwrap();
    // Number 1 of a new session.
    assert_eq!(*seen.lock().unwrap(), [(0, 1, false), (0, 1, false)]);
}

#[tokio::test]
async fn many_requests_of_one_client_are_under_way_at_once() {
    const MANY: usize = 64;
    let seen = Seen::default();
    let client = Client::connect([replica(0, seen.clone(), |_| replied()).await], options()).await.unwrap();
    let tasks: Vec<_> = (0..MANY)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.submit(vec![7]).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut numbers: Vec<u64> = seen.lock().unwrap().iter().map(|(_, number, _)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=MANY as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_query_says_the_op_that_it_reflects() {
    let client =
        Client::connect([replica(0, Seen::default(), |_| replied()).await], options()).await.unwrap();
    let read = client.query(vec![], Consistency::Linearizable).await.unwrap();
    assert_eq!((read.op.value(), read.answer), (9, b"42".to_vec()));
}

#[tokio::test]
async fn a_client_of_another_cluster_is_told_so() {
    let address = replica(0, Seen::default(), |_| replied()).await;
    let options = ClientOptions { cluster: Some(1), timeout: Duration::from_millis(50), ..options() };
    let error = Client::connect([address], options).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Refused { why, .. } if why.contains("77")), "{error}");
}

#[tokio::test]
async fn nobody_there_is_told_within_the_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = ClientOptions { timeout: Duration::from_millis(50), ..options() };
    let error = Client::connect([address.clone()], options).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Network { .. }), "{error}");
    let client = Client::new([address], options).unwrap();
    let error = client.submit(vec![]).await.unwrap_err();
    assert!(matches!(error, SubmitError::NotExecuted(NotExecuted::NoPrimary { .. })), "{error:?}");
}

#[tokio::test]
async fn a_command_beyond_the_limit_is_refused_here() {
    let client =
        Client::connect([replica(0, Seen::default(), |_| replied()).await], options()).await.unwrap();
    client.submit(vec![0; 1024 * 1024]).await.unwrap();
    let error = client.submit(vec![0; 1024 * 1024 + 1]).await.unwrap_err();
    assert!(matches!(error, SubmitError::NotExecuted(NotExecuted::TooLarge { .. })), "{error:?}");
}
