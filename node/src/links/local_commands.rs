//! What programs of other systems ask for through a door of this node: into the same dispatch as every command, with
//! the same gate, emergency stop, limits and journal.
//!
//! An errand has no identity of its own: whoever sent it twice meant it twice, as far as anybody can tell. The node
//! gives each one of its own, so that it is journaled like any other and never runs again after a crash. It has
//! [`ERRAND_LIFE`] to start, a flight action two seconds, from its arrival.

use std::time::{Duration, Instant};

use swarm_shared::net::{clock, random};
use swarm_shared::proto::delivery::dedup::Ledger;
use swarm_shared::proto::delivery::{CommandId, FLIGHT_LIFE_MS_MAX, next_epoch};
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Reply;
use swarm_shared::proto::trust::Role;
use swarm_shared::proto::trust::gate::{ActionClass, Wish, classify, permit};
use tokio::sync::{mpsc, oneshot};

use super::Work;
use super::commands::RELEASE;
use super::executor_driver::Acts;
use super::files::FILE_TRANSFER;
use crate::actions::{Actions, Command};

/// Errands that wait to be taken.
const ERRANDS_MAX: usize = 64;
/// How long an errand may wait for its start.
pub const ERRAND_LIFE: Duration = Duration::from_secs(30);

/// What a door wants done.
#[derive(Debug)]
pub(super) struct Errand {
    role: Role,
    action: String,
    arguments: Arguments,
    life: Duration,
    deadline: Instant,
    reply: oneshot::Sender<Reply>,
}

/// Where doors hand in what they want done. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Errands {
    to: mpsc::Sender<Errand>,
    actions: Actions,
}

impl Errands {
    pub(super) fn new(actions: Actions) -> (Self, mpsc::Receiver<Errand>) {
        let (to, errands) = mpsc::channel(ERRANDS_MAX);
        (Self { to, actions }, errands)
    }

    /// Hands something in, in the name of somebody of this role, that has reached the node at `since` or later. If it
    /// `flies`, it lives as short as an action of flight, whatever its class. Errands are taken in the order of these
    /// calls. Its end comes from the receiver, once; none comes if the node shuts down.
    pub async fn hand_in(
        &self,
        role: Role,
        action: String,
        arguments: Arguments,
        since: Instant,
        flies: bool,
    ) -> oneshot::Receiver<Reply> {
        let life = if flies || self.actions.traits(&action).flight {
            Duration::from_millis(FLIGHT_LIFE_MS_MAX)
        } else {
            ERRAND_LIFE
        };
        let (reply, end) = oneshot::channel();
        let errand = Errand {
            role,
            action,
            arguments,
            life,
            deadline: since + life,
            reply,
        };
        // If nobody takes them any more, the receiver tells.
        let _shutting_down = self.to.send(errand).await;
        end
    }
}

/// The identities of errands.
#[derive(Debug)]
pub(super) struct Numbers {
    last: CommandId,
}

impl Numbers {
    /// Of this node, after all that it has given before.
    pub(super) fn new(node: PeerId, ledger: &Ledger) -> Self {
        let random = u16::try_from(random::spread() & 0xffff).unwrap_or_default();
        let epoch = next_epoch(ledger.epoch_seen(node), clock::unix_time_ms(), random);
        let last = CommandId {
            issuer: node,
            epoch,
            seq: 0,
        };
        Self { last }
    }

    fn next(&mut self) -> CommandId {
        self.last.seq += 1;
        self.last
    }
}

/// Takes an errand, if its role may ask for it.
pub(super) fn take_errand(acts: &mut Acts, work: &Work, numbers: &mut Numbers, errand: Errand) {
    let Errand {
        role,
        action,
        arguments,
        life,
        deadline,
        reply,
    } = errand;
    let class = classify(&action, &arguments);
    let refusal = match permit(role, &Wish::Command(class)) {
        Err(refused) => Some(refused.reason),
        // A stop is released by its own number and by the fleet; a file has its own way.
        Ok(()) if [FILE_TRANSFER, RELEASE].contains(&action.as_str()) => {
            Some(format!("{action} does not go through a door this way"))
        }
        Ok(()) => None,
    };
    if let Some(refusal) = refusal {
        // The door may have closed meanwhile.
        let _gone = reply.send(Reply::refused(refusal));
        return;
    }
    let command = Command {
        id: numbers.next(),
        role,
        action,
        arguments,
        deadline: Some(deadline),
        stop: work.stop.child_token(),
    };
    match class {
        ActionClass::Read => work.errand_aside(command, reply),
        ActionClass::Act | ActionClass::Execute => {
            let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
            acts.errand(command, life_ms, reply, work);
        }
    }
}
