//! Clients of gateways, well-behaved and otherwise.
//!
//! | behaviour | what it does |
//! |---|---|
//! | good | asks once a second, and reads |
//! | silent | says nothing |
//! | trickling | a byte of a question each half second |
//! | garbage | bytes that mean nothing, 20 times a second; reads |
//! | flood | questions as fast as they are taken; does not read |

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;
use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::Samples;

/// How long a good client waits for an answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);
/// Before a client comes again.
const RECONNECT_DELAY: Duration = Duration::from_millis(500);
/// Between two questions of a good client.
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);

/// A gateway that is put under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Gateway {
    /// For drones of clever-show.
    CleverShow,
    /// Platypush over TCP.
    PlatypushTcp,
    /// Platypush over HTTP.
    PlatypushHttp,
    /// For peers of socktools.
    Socktools,
    /// For Knut's clients.
    Knut,
}

impl Gateway {
    /// Its table in the configuration.
    pub(super) fn config_table(self) -> &'static str {
        match self {
            Self::CleverShow => "clever_show",
            Self::PlatypushTcp => "platypush_tcp",
            Self::PlatypushHttp => "platypush_http",
            Self::Socktools => "socktools",
            Self::Knut => "knut",
        }
    }

    /// Whether the gateway sends first and its client answers.
    fn speaks_first(self) -> bool {
        self == Self::CleverShow
    }

    /// The request of a client, which only reads; of clever-show's drones, readings.
    fn request(self) -> Vec<u8> {
        let request = json!({"type": "request", "action": "station.nodes", "target": "node-0"}).to_string();
        match self {
            Self::CleverShow => {
                let content = json!({"args": [], "kwargs": {"value": {"battery": 80}}}).to_string();
                let header = json!({
                    "byteorder": "little", "content-type": "json", "content-encoding": "utf-8",
                    "content-length": content.len(), "message-type": "message", "action": "telemetry",
                });
                framed(&header.to_string(), &content)
            }
            Self::PlatypushTcp => request.into_bytes(),
            Self::PlatypushHttp => format!(
                "POST /execute HTTP/1.1\r\nHost: station\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{request}",
                request.len()
            )
            .into_bytes(),
            Self::Socktools => {
                let length = u32::try_from(request.len()).unwrap_or(0);
                [&length.to_be_bytes()[..], request.as_bytes()].concat()
            }
            Self::Knut => b"{\"apiId\": 1, \"msgId\": 2, \"msg\": {}}\0".to_vec(),
        }
    }
}

/// A frame of clever-show.
fn framed(header: &str, content: &str) -> Vec<u8> {
    let length = u16::try_from(header.len()).unwrap_or(0);
    [&length.to_be_bytes()[..], header.as_bytes(), content.as_bytes()].concat()
}

#[derive(Clone, Copy)]
enum ClientBehaviour {
    WellBehaved,
    Silent,
    Trickling,
    Garbage,
    Flood,
}

impl ClientBehaviour {
    /// Every second one is good.
    fn of(number: u16) -> Self {
        match number % 8 {
            1 => Self::Silent,
            3 => Self::Trickling,
            5 => Self::Garbage,
            7 => Self::Flood,
            _ => Self::WellBehaved,
        }
    }
}

/// The results of one crowd.
#[derive(Debug, Default)]
pub(super) struct ClientStats {
    /// Answers to good clients: how long each took, in ms.
    pub(super) reply_times: Samples,
    /// Connections of other clients that the gateway closed.
    pub(super) closed: u64,
}

/// A crowd at work.
#[derive(Debug)]
pub(super) struct ClientLoad {
    tasks: JoinSet<()>,
    served: Arc<Mutex<ClientStats>>,
}

impl ClientLoad {
    /// So many clients at each of these gateways.
    pub(super) fn start(gateways: &[(Gateway, SocketAddr)], clients: u16) -> Self {
        let served = Arc::new(Mutex::new(ClientStats::default()));
        let mut tasks = JoinSet::new();
        for (gateway, addr) in gateways {
            for number in 0..clients {
                let client = Client {
                    gateway: *gateway,
                    addr: *addr,
                    number,
                    served: Arc::clone(&served),
                };
                tasks.spawn(client.run());
            }
        }
        Self { tasks, served }
    }

    /// Counts from here on.
    pub(super) fn reset(&self) {
        *self.served.lock() = ClientStats::default();
    }

    /// Ends it.
    pub(super) async fn finish(mut self) -> ClientStats {
        self.tasks.shutdown().await;
        std::mem::take(&mut *self.served.lock())
    }
}

struct Client {
    gateway: Gateway,
    addr: SocketAddr,
    number: u16,
    served: Arc<Mutex<ClientStats>>,
}

impl Client {
    async fn run(self) {
        // Not all at once.
        sleep(Duration::from_millis(u64::from(self.number) * 2)).await;
        loop {
            if let Ok(stream) = self.connect().await {
                // A client that is closed out comes again.
                let _closed = match ClientBehaviour::of(self.number) {
                    ClientBehaviour::WellBehaved => self.send_requests(stream).await,
                    ClientBehaviour::Silent => silent(stream).await,
                    ClientBehaviour::Trickling => self.trickle(stream).await,
                    ClientBehaviour::Garbage => garbage(stream).await,
                    ClientBehaviour::Flood => self.flood(stream).await,
                };
                if !matches!(ClientBehaviour::of(self.number), ClientBehaviour::WellBehaved) {
                    self.served.lock().closed += 1;
                }
            }
            sleep(RECONNECT_DELAY).await;
        }
    }

    /// From an address of its own.
    async fn connect(&self) -> std::io::Result<TcpStream> {
        let [high, low] = self.number.to_be_bytes();
        let own = Ipv4Addr::new(127, 2, high, low);
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((own, 0)))?;
        let stream = socket.connect(self.addr).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn send_requests(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut answer = vec![0; 64 * 1024];
        if self.gateway.speaks_first() {
            let started = clock::now();
            self.await_reply(&mut stream, &mut answer, started).await?;
            let content = json!({ "value": format!("load-{}", self.number) }).to_string();
            let header = json!({
                "byteorder": "little", "content-type": "json", "content-encoding": "utf-8",
                "content-length": content.len(), "message-type": "response",
                "requested_value": "id", "request_id": "0",
            });
            stream.write_all(&framed(&header.to_string(), &content)).await?;
        }
        loop {
            let started = clock::now();
            stream.write_all(&self.gateway.request()).await?;
            if !self.gateway.speaks_first() {
                self.await_reply(&mut stream, &mut answer, started).await?;
            }
            sleep(REQUEST_INTERVAL).await;
        }
    }

    /// Waits for something that is no heartbeat.
    async fn await_reply(
        &self,
        stream: &mut TcpStream,
        answer: &mut [u8],
        asked: std::time::Instant,
    ) -> std::io::Result<()> {
        loop {
            let count = timeout(REPLY_TIMEOUT, stream.read(answer)).await??;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if answer[..count].iter().any(|byte| *byte != 0) {
                break;
            }
        }
        let took = clock::since(asked).as_secs_f64() * 1_000.0;
        let mut served = self.served.lock();
        served.reply_times.add(took);
        Ok(())
    }

    async fn trickle(&self, mut stream: TcpStream) -> std::io::Result<()> {
        for byte in self.gateway.request().iter().cycle() {
            stream.write_all(&[*byte]).await?;
            sleep(RECONNECT_DELAY).await;
        }
        Ok(())
    }

    async fn flood(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let questions = self.gateway.request().repeat(16);
        loop {
            stream.write_all(&questions).await?;
        }
    }
}

/// Sends until the gateway closes the connection.
async fn silent(mut stream: TcpStream) -> std::io::Result<()> {
    let mut heard = [0; 1024];
    while stream.read(&mut heard).await? > 0 {}
    Ok(())
}

async fn garbage(stream: TcpStream) -> std::io::Result<()> {
    let (from, mut to) = stream.into_split();
    let noise = crate::fleet::pseudo_random_bytes(256);
    let write = async {
        loop {
            to.write_all(&noise).await?;
            sleep(Duration::from_millis(50)).await;
        }
    };
    let read = async {
        let mut from = from;
        let mut heard = [0; 1024];
        while from.read(&mut heard).await? > 0 {}
        std::io::Result::Ok(())
    };
    tokio::select! {
        ended = write => ended,
        ended = read => ended,
    }
}
