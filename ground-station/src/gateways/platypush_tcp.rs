//! Platypush's messages over TCP: `echo '{"type": "request", …}' | nc localhost 1234`.
//!
//! | state | ends with |
//! |---|---|
//! | waits for a message | its first byte; closed after [`FIRST_BYTE_TIMEOUT`], after an answer already after `idle` |
//! | takes a message | its last byte; an answer and closed after [`MESSAGE_TIMEOUT`](super::stream::MESSAGE_TIMEOUT), or where it cannot be cut out |
//! | does it | the answer. Nothing more is read meanwhile, so requests are done in their order |
//! | answers | all of it written; closed after [`WRITE_TIMEOUT`](super::stream::WRITE_TIMEOUT) in which nothing is read |
//!
//! A client that has said all and closed its side still gets its answers. Of one that is gone, an
//! emergency stop that has arrived is done.

use std::time::Duration;

use swarm_shared::proto::foreign::platypush::{MessageReader, Request, Response};
use tokio::net::TcpStream;

use super::access::Client;
use super::framing::{
    DRAIN_MESSAGES_MAX, FIRST_BYTE_TIMEOUT, StreamError, close_gracefully, read_message, write_message,
};
use super::listener::{ConnectionPermit, GatewayListener};
use super::platypush_handler::{RequestHandler, random_id};
use super::{GatewayContext, GatewayError};
use crate::config::gateways::PlatypushTcpConfig;

const GATEWAY: &str = "platypush_tcp";
/// As programs look for it.
const SERVICE: &str = "_platypush-tcp._tcp.local.";

/// Opens the gateway.
///
/// # Errors
/// [`DoorError`].
pub async fn open(config: &PlatypushTcpConfig, context: &GatewayContext) -> Result<(), GatewayError> {
    let listener = GatewayListener::open(GATEWAY, &config.common, context)?;
    if let Ok(listens) = listener.local_addr() {
        context.publish(SERVICE, listens).await;
    }
    let handler = RequestHandler::new(GATEWAY, &config.common, context);
    let limits = config.common.limits.clone();
    context.tasks.spawn(listener.serve(move |stream, permit| {
        let (message_max, idle) = (limits.message_bytes, limits.idle);
        let counter = Connection {
            handler: handler.clone(),
            client: Client {
                from: permit.addr.ip(),
                user: None,
            },
            permit,
            idle_timeout: idle,
        };
        counter.serve(stream, MessageReader::new(message_max))
    }));
    Ok(())
}

/// One client.
struct Connection {
    handler: RequestHandler,
    client: Client,
    permit: ConnectionPermit,
    idle_timeout: Duration,
}

impl Connection {
    async fn serve(self, mut stream: TcpStream, mut splitter: MessageReader) {
        let addr = self.permit.addr;
        match self.run(&mut stream, &mut splitter).await {
            Ok(()) => {}
            Err(StreamError::ConnectionLost(why)) => tracing::debug!(gateway = GATEWAY, %addr, why, "lost"),
            Err(StreamError::ProtocolError(fault)) => {
                tracing::debug!(gateway = GATEWAY, %addr, fault, "closed");
                let refused = self.handler.reject_unparsed(&self.client, &fault).await;
                let mut unheard = None;
                self.send_response(&mut stream, &refused, &mut unheard).await;
                if let Some(error) = unheard {
                    tracing::debug!(gateway = GATEWAY, %addr, %error, "not told why");
                }
            }
        }
        close_gracefully(stream).await;
    }

    async fn run(&self, stream: &mut TcpStream, splitter: &mut MessageReader) -> Result<(), StreamError> {
        let mut idle_timeout = FIRST_BYTE_TIMEOUT;
        // Why it hears no answers any more. Of what has arrived before, an emergency stop is done all the same.
        let mut unheard = None;
        let mut left = DRAIN_MESSAGES_MAX;
        loop {
            if unheard.is_some() {
                left -= 1;
                idle_timeout = Duration::ZERO;
            }
            let message = match read_message(stream, splitter, idle_timeout).await {
                Ok(Some(message)) if left > 0 => message,
                Ok(_) => return unheard.map_or(Ok(()), Err),
                Err(ended) => return Err(unheard.unwrap_or(ended)),
            };
            self.permit.throttle().await;
            idle_timeout = self.idle_timeout;
            let request = match Request::parse(&message, random_id()) {
                Ok(request) => request,
                Err(bad) => {
                    let refused = self.handler.reject(&self.client, bad).await;
                    self.send_response(stream, &refused, &mut unheard).await;
                    continue;
                }
            };
            drop(message);
            if let Err(refused) = self.handler.authenticate(&self.client, &request).await {
                // Whoever guesses has to come again for each guess.
                self.send_response(stream, &refused, &mut unheard).await;
                return unheard.map_or(Ok(()), Err);
            }
            if unheard.is_some() {
                self.handler.handle_after_disconnect(&self.client, request).await;
                continue;
            }
            let response = self.handler.handle(&self.client, request).await;
            self.send_response(stream, &response, &mut unheard).await;
        }
    }

    /// Answers, unless nobody hears that any more.
    async fn send_response(
        &self,
        stream: &mut TcpStream,
        response: &Response,
        unheard: &mut Option<StreamError>,
    ) {
        if unheard.is_some() {
            return;
        }
        let mut bytes = self.handler.encode(response);
        // For people who look at it, and between two answers.
        bytes.push(b'\n');
        *unheard = write_message(stream, &bytes).await.err();
    }
}
