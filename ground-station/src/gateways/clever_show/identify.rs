//! Identifies connections by the id of their drone, and passes each to the task of its drone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use swarm_shared::net::clock;
use swarm_shared::net::socket::{self, KeepaliveConfig, TrafficClass};
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::foreign::clever_show::LIMITS_UNIDENTIFIED;
use swarm_shared::proto::foreign::clever_show::server::{
    BadId, Drone, DroneOptions, id_request, parse_id_response,
};
use swarm_shared::proto::wire::{FrameReader, WireError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::connection::Connection;
use super::drone_task::{Arrival, DroneTask, DuplicateIds};
use super::policy::{CommandPolicy, READ_REQUESTS, REQUESTS_ALSO_ACTIONS};
use super::{SYSTEM, Server};
use crate::engine::transport::bridge::{DeviceProfile, RegisterError, device_id, device_name};
use crate::gateways::listener::{ConnectionPermit, log_throttled};
use swarm_shared::api::NodeRef;

/// How long a connection may take to report its drone's id.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most drones with one id at once.
const DUPLICATE_IDS_MAX: usize = 8;
/// Most frames before the id.
const IDENTIFY_FRAMES_MAX: usize = 16;
/// Connections that wait for one drone's task.
const PENDING_CONNECTIONS_MAX: usize = 4;

/// The drones' tasks, by id.
type TasksById = BTreeMap<String, DronesWithId>;

/// The tasks of drones with one id.
#[derive(Debug, Default)]
struct DronesWithId {
    /// A task whose channel is closed has ended; its index is used again, since the device's id depends on it.
    tasks: Vec<mpsc::Sender<Arrival>>,
    duplicates: DuplicateIds,
}

/// Passes connections to the tasks of their drones. Clones share the tasks.
#[derive(Clone, Debug)]
pub(super) struct DroneRegistry {
    server: Arc<Server>,
    tasks_by_id: Arc<Mutex<TasksById>>,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum RejectReason {
    #[error("connection lost: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Id(#[from] BadId),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("it did not report its id within {IDENTIFY_TIMEOUT:?}")]
    TooSlow,
    #[error("it sent {IDENTIFY_FRAMES_MAX} frames without its id")]
    TooManyFrames,
    #[error("{DUPLICATE_IDS_MAX} drones have this id already")]
    TooManyDuplicates,
    #[error("the task of this id has just ended; reconnect")]
    TaskEnded,
}

impl RejectReason {
    /// The kind of its log line; lines are throttled by kind.
    fn log_kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "connection lost",
            Self::Wire(WireError::HeaderTooLong { .. }) => "header too long",
            Self::Wire(WireError::ContentTooLong { .. }) => "content too long",
            Self::Wire(WireError::MissingKey(_)) => "missing key",
            Self::Wire(_) => "bad header",
            Self::Id(_) => "bad id",
            Self::Register(_) => "not registered",
            Self::TooSlow => "too slow",
            Self::TooManyFrames => "too many frames",
            Self::TooManyDuplicates => "duplicate ids",
            Self::TaskEnded => "task ended",
        }
    }

    /// The reason in the audit, which aggregates refusals by reason: without text that the client chose.
    fn audit_reason(&self) -> String {
        if let Self::Wire(WireError::BadHeader(_)) = self {
            return "bad header".to_owned();
        }
        self.to_string()
    }
}

impl DroneRegistry {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            tasks_by_id: Arc::default(),
        }
    }

    /// Identifies a connection and passes it on; closes and audits it if that fails.
    pub(super) async fn handle_connection(self, stream: TcpStream, permit: ConnectionPermit) {
        let addr = permit.addr;
        let (client, log) = (permit.client(), permit.throttled_log());
        let until = clock::now() + IDENTIFY_TIMEOUT;
        let identified = match clock::timeout_at(until, identify(stream, permit)).await {
            Ok(identified) => identified,
            Err(_elapsed) => Err(RejectReason::TooSlow),
        };
        let (routed, id) = match identified {
            Ok((id, connection)) => (self.route(&id, connection).await, id),
            Err(error) => (Err(error), String::new()),
        };
        let outcome = match routed {
            Ok(()) => {
                // The name that selectors match: it differs from an id that is not a valid node name.
                let name = device_name(&id);
                log_throttled!(log, "connected", info, %addr, id, %name, "Drone connected");
                "done".to_owned()
            }
            Err(error) => {
                log_throttled!(log, error.log_kind(), warn, %addr, id, %error, "Drone connection closed");
                format!("not done: {}", error.audit_reason())
            }
        };
        self.server.access.audit(&client, "connect", &id, outcome).await;
    }

    /// Passes a connection to the first task of this id that takes it: one without a live connection, or else a new one.
    async fn route(&self, id: &str, mut connection: Box<Connection>) -> Result<(), RejectReason> {
        let mut offered: Vec<mpsc::Sender<Arrival>> = Vec::new();
        while offered.len() < DUPLICATE_IDS_MAX {
            let drone_task = self.find_or_spawn(id, &offered)?;
            let (answer, taken) = oneshot::channel();
            let arrival = Arrival { connection, answer };
            drone_task
                .send(arrival)
                .await
                .map_err(|_gone| RejectReason::TaskEnded)?;
            match taken.await.map_err(|_gone| RejectReason::TaskEnded)? {
                Some(back) => connection = back,
                None => return Ok(()),
            }
            offered.push(drone_task);
        }
        Err(RejectReason::TooManyDuplicates)
    }

    /// A task of this id that was not offered the connection yet: one that runs, so that a drone that reconnects finds its
    /// state, or else a new one.
    fn find_or_spawn(
        &self,
        id: &str,
        offered: &[mpsc::Sender<Arrival>],
    ) -> Result<mpsc::Sender<Arrival>, RejectReason> {
        let mut tasks_by_id = self.tasks_by_id.lock();
        let known = tasks_by_id
            .get(id)
            .map(|called| called.tasks.as_slice())
            .unwrap_or_default();
        let is_new =
            |drone_task: &mpsc::Sender<Arrival>| !offered.iter().any(|other| other.same_channel(drone_task));
        let mut open = known.iter().filter(|drone_task| !drone_task.is_closed());
        if let Some(drone_task) = open.find(|drone_task| is_new(drone_task)) {
            return Ok(drone_task.clone());
        }
        let free = known.iter().position(mpsc::Sender::is_closed);
        let place = free.unwrap_or(known.len());
        if place >= DUPLICATE_IDS_MAX {
            return Err(RejectReason::TooManyDuplicates);
        }
        // Ids without a running task.
        tasks_by_id.retain(|called, those| {
            called == id || those.tasks.iter().any(|drone_task| !drone_task.is_closed())
        });
        let server = &self.server;
        let config = &server.config;
        // The index is not part of the id, so that no crafted id collides with that of a duplicate.
        let system = match place {
            0 => SYSTEM.to_owned(),
            place => format!("{SYSTEM}/{place}"),
        };
        let known = READ_REQUESTS
            .iter()
            .filter(|name| !REQUESTS_ALSO_ACTIONS.contains(*name));
        let known = known.map(|name| (*name).to_owned());
        let reads: BTreeSet<String> = known.chain(config.requests.iter().cloned()).collect();
        let device = server.context.devices.register(DeviceProfile {
            node: NodeRef {
                node: device_name(id),
                id: device_id(&system, id),
            },
            tags: BTreeMap::from([("system".to_owned(), SYSTEM.to_owned())]),
            software: Some(SYSTEM.to_owned()),
            reads: Arc::new(reads),
            file_bytes_max: config.file_bytes,
        })?;
        let rules = DroneOptions {
            resume_queue: config.resume_queue,
            resend_requests: config.resend_requests,
            idle_timeout: config.common.idle,
        };
        let drone = Drone::new(id.to_owned(), rules);
        let policy = CommandPolicy::new(config, server.access.clone());
        let (arrivals, arrivals_in) = mpsc::channel(PENDING_CONNECTIONS_MAX);
        let called = tasks_by_id.entry(id.to_owned()).or_default();
        let duplicates = called.duplicates.clone();
        let drone_task = DroneTask::new(drone, device, policy, duplicates, arrivals_in, &server.context);
        server.context.tasks.spawn(drone_task.run());
        match called.tasks.get_mut(place) {
            Some(gone) => gone.clone_from(&arrivals),
            None => called.tasks.push(arrivals.clone()),
        }
        Ok(arrivals)
    }
}

/// Asks a connection for its drone's id.
async fn identify(
    mut stream: TcpStream,
    permit: ConnectionPermit,
) -> Result<(String, Box<Connection>), RejectReason> {
    socket::configure_accepted(&stream, &KeepaliveConfig::default(), TrafficClass::Control)
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    let mut question = BytesMut::new();
    id_request().encode(&mut question)?;
    stream.write_all(&question).await?;
    let mut reader = FrameReader::new(LIMITS_UNIDENTIFIED);
    let mut inbox = BytesMut::new();
    for _ in 0..IDENTIFY_FRAMES_MAX {
        permit.throttle().await;
        let frame = loop {
            if let Some(frame) = reader.next_frame(&mut inbox)? {
                break frame;
            }
            inbox.reserve(reader.missing_bytes());
            if stream.read_buf(&mut inbox).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        };
        if let Some(id) = parse_id_response(&frame) {
            let connection = Connection::new(stream, permit, reader, inbox);
            return Ok((id?, Box::new(connection)));
        }
    }
    Err(RejectReason::TooManyFrames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_reason_contains_no_client_supplied_text() {
        let bad_header =
            |said: &str| RejectReason::Wire(WireError::BadHeader(said.to_owned())).audit_reason();
        assert_eq!(
            bad_header("unknown variant `a`"),
            bad_header("unknown variant `b`")
        );
        assert_eq!(
            RejectReason::Wire(WireError::HeaderNotUtf8).audit_reason(),
            "header is not UTF-8"
        );
    }
}
