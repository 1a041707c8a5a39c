//! Connections that have not said who they are.

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
use crate::gateways::access::Client;
use crate::gateways::listener::ConnectionPermit;
use swarm_shared::api::NodeRef;

/// How long a connection may take to say who it is.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most drones that may call themselves the same at once.
const DUPLICATE_IDS_MAX: usize = 8;
/// Most frames that a connection may say before it says who it is.
const IDENTIFY_FRAMES_MAX: usize = 16;
/// Arrivals that wait for one drone_task.
const PENDING_CONNECTIONS_MAX: usize = 4;

/// By id.
type DroneTasks = BTreeMap<String, DronesWithId>;

/// Those that call themselves the same.
#[derive(Debug, Default)]
struct DronesWithId {
    /// By place among them.
    tasks: Vec<mpsc::Sender<Arrival>>,
    duplicates: DuplicateIds,
}

/// Leads connections to their drone_tasks.
#[derive(Clone, Debug)]
pub(super) struct DroneRegistry {
    server: Arc<Server>,
    drone_tasks: Arc<Mutex<DroneTasks>>,
}

/// Why a connection has no drone_task.
#[derive(Debug, thiserror::Error)]
enum RejectReason {
    #[error("it broke: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Id(#[from] BadId),
    #[error(transparent)]
    DeviceGuard(#[from] RegisterError),
    #[error("it did not say its id within {IDENTIFY_TIMEOUT:?}")]
    TooSlow,
    #[error("it said {IDENTIFY_FRAMES_MAX} things, and not its id")]
    TooManyFrames,
    #[error("{DUPLICATE_IDS_MAX} drones call themselves so already")]
    TooManyDuplicates,
    #[error("its post has just ended; a drone that comes again gets another, unless the station stops")]
    TaskEnded,
}

impl RejectReason {
    /// The log tells of each kind by itself, however often there is another.
    fn log_kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "broke",
            Self::Wire(WireError::HeaderTooLong { .. }) => "header too long",
            Self::Wire(WireError::ContentTooLong { .. }) => "content too long",
            Self::Wire(WireError::HeaderNotUtf8 | WireError::HeaderTooDeep | WireError::BadHeader(_)) => {
                "bad header"
            }
            Self::Wire(WireError::MissingKey(_)) => "missing key",
            Self::Id(_) => "bad id",
            Self::DeviceGuard(_) => "no device",
            Self::TooSlow => "too slow",
            Self::TooManyFrames => "too much",
            Self::TooManyDuplicates => "namesakes",
            Self::TaskEnded => "no post",
        }
    }

    /// For the audit, which counts refusals of one reason together: nothing that a client makes up is in it.
    fn audit_reason(&self) -> String {
        match self {
            Self::Wire(WireError::BadHeader(_)) => "bad header".to_owned(),
            Self::Io(_)
            | Self::Wire(
                WireError::HeaderTooLong { .. }
                | WireError::ContentTooLong { .. }
                | WireError::HeaderNotUtf8
                | WireError::HeaderTooDeep
                | WireError::MissingKey(_),
            )
            | Self::Id(_)
            | Self::DeviceGuard(_)
            | Self::TooSlow
            | Self::TooManyFrames
            | Self::TooManyDuplicates
            | Self::TaskEnded => self.to_string(),
        }
    }
}

impl DroneRegistry {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            drone_tasks: Arc::default(),
        }
    }

    /// One connection, until it is a drone's.
    pub(super) async fn handle_connection(self, stream: TcpStream, permit: ConnectionPermit) {
        let addr = permit.addr;
        let client = Client {
            from: addr.ip(),
            user: None,
        };
        let log = permit.throttled_log();
        let until = clock::now() + IDENTIFY_TIMEOUT;
        let greeted = match clock::timeout_at(until, identify(stream, permit)).await {
            Ok(greeted) => greeted,
            Err(_elapsed) => Err(RejectReason::TooSlow),
        };
        let (led, id) = match greeted {
            Ok((id, connection)) => (self.route(&id, connection).await, id),
            Err(error) => (Err(error), String::new()),
        };
        let outcome = match led {
            Ok(()) => {
                // An id that is no node's name is not what selectors know it by.
                let name = device_name(&id);
                match log.count("here") {
                    Some(count) => tracing::info!(%addr, id, %name, count, "a clever-show drone is here"),
                    None => tracing::debug!(%addr, id, %name, "a clever-show drone is here"),
                }
                "done".to_owned()
            }
            Err(error) => {
                let text = "a connection at clever-show's gateway was closed";
                match log.count(error.log_kind()) {
                    Some(count) => tracing::warn!(%addr, id, %error, count, "{text}"),
                    None => tracing::debug!(%addr, id, %error, "{text}"),
                }
                format!("not done: {}", error.audit_reason())
            }
        };
        self.server.access.audit(&client, "connect", &id, outcome).await;
    }

    /// To the first drone_task of this id that takes it; to a new one if none does.
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

    /// A drone_task of this id that has not been offered the connection yet: one that is there, so that a drone that comes
    /// back is what it was, or else a new one.
    fn find_or_spawn(
        &self,
        id: &str,
        offered: &[mpsc::Sender<Arrival>],
    ) -> Result<mpsc::Sender<Arrival>, RejectReason> {
        let mut drone_tasks = self.drone_tasks.lock();
        let known = drone_tasks
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
        // Those that have lost their seats.
        drone_tasks.retain(|called, those| {
            called == id || those.tasks.iter().any(|drone_task| !drone_task.is_closed())
        });
        let server = &self.server;
        let config = &server.config;
        // Nothing that a drone calls itself makes it another one's namesake.
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
            idle_timeout: config.common.limits.idle,
        };
        let drone = Drone::new(id.to_owned(), rules);
        let policy = CommandPolicy::new(config, server.access.clone());
        let (arrivals, arrivals_in) = mpsc::channel(PENDING_CONNECTIONS_MAX);
        let called = drone_tasks.entry(id.to_owned()).or_default();
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

/// Asks a connection who it is.
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
