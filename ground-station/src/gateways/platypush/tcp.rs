//! Platypush's messages over TCP: `echo '{"type": "request", …}' | nc localhost 1234`.
//!
//! | state | ends with |
//! |---|---|
//! | waits for a message | its first byte; closed after [`FIRST_BYTE_TIMEOUT`], or `idle` after a response |
//! | reads a message | its last byte; an error response and closed after [`MESSAGE_TIMEOUT`](framing::MESSAGE_TIMEOUT), or if it is invalid beyond recovery |
//! | carries out the request | the response. Nothing is read meanwhile, so requests are carried out in order |
//! | writes the response | its last byte; closed if nothing is read for [`WRITE_TIMEOUT`](framing::WRITE_TIMEOUT) |
//!
//! A client that has closed its sending side still gets its responses. Of a client that has disconnected, an emergency stop
//! that had arrived is carried out, and nothing else.

use std::time::Duration;

use swarm_shared::proto::foreign::platypush::{MessageReader, Request, Response};
use tokio::net::TcpStream;

use super::handler::{MessageEnd, RequestHandler, random_id};
use crate::config::gateways::{CommonOptions, PlatypushTcpConfig};
use crate::gateways::access::Client;
use crate::gateways::context::{GatewayContext, GatewayError};
use crate::gateways::framing::{
    self, DRAIN_MESSAGES_MAX, FIRST_BYTE_TIMEOUT, StreamError, close_gracefully, read_message,
};
use crate::gateways::listener::{ConnectionPermit, GatewayListener};

/// The gateway's name in the configuration.
const GATEWAY: &str = PlatypushTcpConfig::NAME;
/// The service that programs look for by mDNS.
const SERVICE: &str = "_platypush-tcp._tcp.local.";

/// Opens the gateway.
///
/// # Errors
/// [`GatewayError`].
pub async fn open(config: &PlatypushTcpConfig, context: &GatewayContext) -> Result<(), GatewayError> {
    let listener = GatewayListener::open(GATEWAY, &config.common, context)?;
    if let Ok(listens) = listener.local_addr() {
        context.publish(SERVICE, listens).await;
    }
    let handler = RequestHandler::new(GATEWAY, &config.common, context);
    let CommonOptions {
        message_bytes, idle, ..
    } = config.common;
    context.tasks.spawn(listener.serve(move |stream, permit| {
        let connection = Connection {
            handler: handler.clone(),
            client: permit.client(),
            permit,
            idle_timeout: idle,
        };
        connection.serve(stream, MessageReader::new(message_bytes))
    }));
    Ok(())
}

/// The connection of one client.
struct Connection {
    handler: RequestHandler,
    client: Client,
    permit: ConnectionPermit,
    idle_timeout: Duration,
}

impl Connection {
    async fn serve(self, mut stream: TcpStream, mut reader: MessageReader) {
        let addr = self.permit.addr;
        match self.run(&mut stream, &mut reader).await {
            Ok(()) => {}
            Err(lost @ (StreamError::ConnectionLost(_) | StreamError::Silent(_))) => {
                tracing::debug!(gateway = GATEWAY, %addr, %lost, "Connection ended");
            }
            Err(StreamError::ProtocolError(fault)) => {
                tracing::debug!(gateway = GATEWAY, %addr, fault, "Connection closed");
                let refused = self.handler.reject_unparsed(&self.client, &fault).await;
                let mut lost = None;
                self.send_response(&mut stream, &refused, &mut lost).await;
                if let Some(error) = lost {
                    tracing::debug!(gateway = GATEWAY, %addr, %error, "Error response not sent");
                }
            }
        }
        close_gracefully(stream).await;
    }

    async fn run(&self, stream: &mut TcpStream, reader: &mut MessageReader) -> Result<(), StreamError> {
        let mut idle_timeout = FIRST_BYTE_TIMEOUT;
        // Why responses do not reach the client any more. Messages that had arrived before are still looked at.
        let mut lost = None;
        let mut left = DRAIN_MESSAGES_MAX;
        loop {
            if lost.is_some() {
                left -= 1;
                idle_timeout = Duration::ZERO;
            }
            let message = match read_message(stream, reader, idle_timeout).await {
                Ok(Some(message)) if left > 0 => message,
                Ok(_) => return lost.map_or(Ok(()), Err),
                Err(ended) => return Err(lost.unwrap_or(ended)),
            };
            self.permit.throttle().await;
            idle_timeout = self.idle_timeout;
            let parsed = Request::parse(&message, random_id());
            drop(message);
            let end = self.handler.handle_message(&self.client, parsed, lost.is_some());
            match end.await {
                MessageEnd::Respond(response) => self.send_response(stream, &response, &mut lost).await,
                MessageEnd::RespondAndClose(response) => {
                    self.send_response(stream, &response, &mut lost).await;
                    return lost.map_or(Ok(()), Err);
                }
                MessageEnd::Drop => {}
            }
        }
    }

    /// Sends a response, unless the client has disconnected.
    async fn send_response(
        &self,
        stream: &mut TcpStream,
        response: &Response,
        lost: &mut Option<StreamError>,
    ) {
        if lost.is_some() {
            return;
        }
        let mut bytes = self.handler.encode(response);
        // Separates responses, and ends the line on a terminal.
        bytes.push(b'\n');
        *lost = framing::write_message(stream, &bytes).await.err();
    }
}
