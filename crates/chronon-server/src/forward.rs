//! From a replica to the primary: over the primary's client port, as any client.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chronon_client::{ConnectError, Connection, ConnectionLimits, Unanswered};
use chronon_kernel::{Answer, NotExecuted, Origin, Submission};
use chronon_vsr::{ClusterId, ReplicaId};
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::admission::Admission;
use crate::front::FrontHandle;

/// How long a connection to another replica may take to be made.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);

/// A primary that hears of another, or of the end of a request's time, says within this what became of the request. One
/// that hangs says nothing.
const LAST_WORD_PATIENCE: Duration = Duration::from_millis(500);

/// Between two tries while there is no primary.
const PAUSE: Duration = Duration::from_millis(20);

/// Brings submissions to the primary, wherever it is.
pub(crate) struct Forwarder {
    me: ReplicaId,
    cluster: ClusterId,
    front: FrontHandle,
    admission: Admission,
    others: BTreeMap<ReplicaId, Other>,
}

struct Other {
    address: String,
    /// Held while connecting: many requests make one connection.
    connection: Mutex<Option<Connection>>,
}

/// One try.
enum Try {
    Answered(Answer),
    /// It was executed nowhere; another try may find the primary.
    NoPrimary,
    /// It may have been executed.
    Unknown,
}

impl Forwarder {
    /// A forwarder that reaches the other replicas at these addresses of their client ports.
    pub(crate) fn new(
        (me, cluster): (ReplicaId, ClusterId),
        front: FrontHandle,
        admission: Admission,
        addresses: impl IntoIterator<Item = (ReplicaId, String)>,
    ) -> Forwarder {
        let other = |(replica, address)| (replica, Other { address, connection: Mutex::new(None) });
        let others = addresses.into_iter().filter(|(replica, _)| *replica != me).map(other).collect();
        Forwarder { me, cluster, front, admission, others }
    }

    /// The other replicas.
    pub(crate) fn others(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.others.keys().copied()
    }

    /// Submits to the primary and says what became of it. A command whose end is unknown is repeated while there is
    /// time: it carries a key, so that is safe.
    pub(crate) async fn submit(&self, mut submission: Submission, timeout: Duration) -> Answer {
        let deadline = Instant::now() + timeout;
        let mut unknown = false;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                let expired = Answer::NotExecuted(NotExecuted::NoPrimary { primary: None });
                return if unknown { Answer::Indeterminate } else { expired };
            }
            match self.submit_once(&submission, rest).await {
                Try::Answered(answer) => return answer,
                Try::NoPrimary => {}
                Try::Unknown => match &mut submission {
                    Submission::Command { origin: Origin::Key { .. }, repeat, .. } => {
                        unknown = true;
                        *repeat = true;
                    }
                    Submission::Command { origin: Origin::Session { .. }, .. }
                    | Submission::Register { .. }
                    | Submission::SinkSet { .. }
                    | Submission::Desk { .. }
                    | Submission::Skip(_) => return Answer::Indeterminate,
                },
            }
            if self.front.is_gone() {
                return if unknown {
                    Answer::Indeterminate
                } else {
                    Answer::NotExecuted(NotExecuted::NoPrimary { primary: None })
                };
            }
            sleep(PAUSE.min(rest)).await;
        }
    }

    async fn submit_once(&self, submission: &Submission, timeout: Duration) -> Try {
        let admitted = match self.admission.admit(submission.clone()) {
            Ok(admitted) => admitted,
            Err(why) => return Try::Answered(Answer::NotExecuted(why)),
        };
        let primary = match self.front.submit(admitted, timeout).await {
            Answer::NotExecuted(NotExecuted::NoPrimary { primary: Some(primary) }) => ReplicaId::new(primary),
            Answer::NotExecuted(NotExecuted::NoPrimary { primary: None }) => return Try::NoPrimary,
            Answer::Indeterminate => return Try::Unknown,
            answer => return Try::Answered(answer),
        };
        if primary == self.me {
            return Try::NoPrimary;
        }
        let Ok(connection) = self.connection(primary).await else { return Try::NoPrimary };
        let answer = tokio::select! {
            answer = connection.submit(timeout, submission.clone()) => answer,
            () = self.until_given_up(primary, timeout) => Err(Unanswered::Unknown),
        };
        match answer {
            Ok(Answer::NotExecuted(NotExecuted::NoPrimary { .. })) | Err(Unanswered::Unsent) => {
                Try::NoPrimary
            }
            Ok(Answer::Indeterminate) | Err(Unanswered::Unknown) => Try::Unknown,
            Ok(answer) => Try::Answered(answer),
        }
    }

    /// Another replica leads, or the time is over, and this primary could have said so.
    async fn until_given_up(&self, primary: ReplicaId, timeout: Duration) {
        let another = tokio::time::timeout(timeout, self.front.until_another_leads(primary));
        // Either way it has the last word.
        drop(another.await);
        sleep(LAST_WORD_PATIENCE).await;
    }

    /// Another replica's part of the cluster's status: JSON text, or why there is none.
    pub(crate) async fn status(&self, replica: ReplicaId) -> Result<String, String> {
        let connection = self.connection(replica).await.map_err(|error| error.to_string())?;
        connection.status().await.map_err(|error| error.to_string())
    }

    async fn connection(&self, replica: ReplicaId) -> Result<Connection, ConnectError> {
        let Some(other) = self.others.get(&replica) else {
            let why = "the configuration has no address of it".to_owned();
            return Err(ConnectError::Refused { address: format!("replica {replica}"), why });
        };
        let mut present = other.connection.lock().await;
        if let Some(connection) = present.as_ref()
            && !connection.is_closed()
        {
            return Ok(connection.clone());
        }
        let cluster = Some(self.cluster.value());
        let opened =
            Connection::open(&other.address, cluster, CONNECT_PATIENCE, ConnectionLimits::default()).await?;
        *present = Some(opened.clone());
        Ok(opened)
    }
}
