//! Joining a fleet: with an invitation code, or by waiting to be accepted by hand.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::timeout;

use super::endpoint::JOIN_TIMEOUT;
use super::handshake::{AuthenticatedConn, HandshakeError, LocalPeer, PREAUTH_TIMEOUT};
use super::socket::{self, KeepaliveConfig, SegmentSize, SocketError, TrafficClass};
use crate::proto::id::NodeName;
use crate::proto::json::JsonError;
use crate::proto::message::{Channel, Join, Joined, Refused};
use crate::proto::trust::invite::{self, Invitation, JoinSide};
use crate::proto::trust::{Fingerprint, Membership, TrustError};
use crate::proto::wire::{Frame, FrameLimits, Kind};

/// How long the dial may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why joining failed. Nothing has changed; it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The station could not be reached.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The station refused.
    #[error("the station refused: {0}")]
    Refused(Refused),
    /// The connection ended without an answer.
    #[error("the station at {0} did not answer; try again")]
    NoAnswer(SocketAddr),
    /// The answer is not a valid one.
    #[error("the station's answer is unreadable: {0}")]
    Unreadable(#[from] JsonError),
    /// The station does not hold the invitation.
    #[error(
        "the program at {addr} does not hold this invitation (its fleet is {fleet}): another program answers there, or \
         the code is of another fleet"
    )]
    Impostor {
        /// The address that was dialled.
        addr: SocketAddr,
        /// The fingerprint of the fleet that the program showed.
        fleet: String,
    },
    /// The grant in the answer is not valid.
    #[error("the station's grant is not good: {0}")]
    Trust(#[from] TrustError),
}

/// Asks the station at `addr` to take this program into its fleet. With an invitation, the station has to prove that it
/// holds it. Without one, any station is trusted (trust on first use), and the call waits up to [`JOIN_TIMEOUT`] for its
/// operator.
///
/// # Errors
/// [`JoinError`], which says what was wrong and what to do.
pub async fn join(
    local: &LocalPeer,
    keepalive: &KeepaliveConfig,
    addr: SocketAddr,
    invitation: Option<&Invitation>,
) -> Result<Membership, JoinError> {
    join_with_callback(local, keepalive, addr, invitation, |_name| {}).await
}

/// As [`join`]; calls `found` once with the name in the station's hello, which is not verified by then.
///
/// # Errors
/// As [`join`].
pub async fn join_with_callback(
    local: &LocalPeer,
    keepalive: &KeepaliveConfig,
    addr: SocketAddr,
    invitation: Option<&Invitation>,
    on_hello: impl FnOnce(&NodeName),
) -> Result<Membership, JoinError> {
    // Small segments always: the answer is large, and a person waits, so there is no second attempt on a path that drops
    // large packets.
    let tcp = socket::connect_with_segments(
        addr,
        CONNECT_TIMEOUT,
        keepalive,
        TrafficClass::Control,
        SegmentSize::Small,
    )
    .await?;
    let greeted = local.dial(tcp, addr, Channel::Join, None).await;
    let AuthenticatedConn {
        mut conn,
        exporter,
        hello,
        ..
    } = match greeted {
        Err(HandshakeError::RefusedByPeer(refused)) => return Err(JoinError::Refused(refused)),
        greeted => greeted?,
    };
    on_hello(&hello.name);
    let proof = invitation.map(|invitation| invite::prove(invitation.secret(), JoinSide::Joiner, &exporter));
    let reply_timeout = if proof.is_some() {
        PREAUTH_TIMEOUT * 2
    } else {
        JOIN_TIMEOUT + PREAUTH_TIMEOUT
    };
    conn.queue_frame(&Frame::json(Kind::Join, &Join { proof }))
        .map_err(HandshakeError::from)?;
    // The answer carries the fleet state, which grows with every key that was ever revoked.
    conn.set_limits(FrameLimits::CONTROL);
    let answer = timeout(reply_timeout, conn.read_frame())
        .await
        .map_err(|_elapsed| JoinError::NoAnswer(addr))?;
    let frame = answer.map_err(HandshakeError::from)?;
    if frame.header.kind == Some(Kind::Refused) {
        return Err(JoinError::Refused(frame.parse_content()?));
    }
    let joined: Joined = frame.parse_content()?;
    if let Some(invitation) = invitation {
        let proved = joined.proof.is_some_and(|proof| {
            invite::verify_proof(invitation.secret(), JoinSide::Inviter, &exporter, &proof)
        });
        let fleet = Fingerprint::of(&joined.root);
        if !proved || fleet != *invitation.fingerprint() {
            return Err(JoinError::Impostor {
                addr,
                fleet: fleet.short(),
            });
        }
    }
    let own = local.identity.key.public();
    Ok(Membership::new(
        joined.root,
        &own,
        joined.grant,
        joined.fleet_state,
    )?)
}
