//! What each action is like: what the desk has to know before it lets one run.
//!
//! | action | runs again after a crash midway | runs while stopped |
//! |---|---|---|
//! | `log` | yes: it changes nothing | yes |
//! | `notify` | no | yes: whoever stops a fleet wants to say why |
//! | `config`, `id` (changing) | no: a later change by somebody else may have come between | yes: nothing moves by it |
//! | `execute`, `service_restart`, `reboot` | no | no |
//! | the owner's | if `idempotent = true` | if `while_stopped = true` |
//!
//! None but an owner's with `class = "flight"` is a flight action. What is not known is refused when it runs.

use swarm_shared::proto::delivery::desk::Traits;
use swarm_shared::proto::message::{Offer, OfferedAction, OfferedClass};

use super::Actions;
use crate::config::{Action, Class};

/// How many actions an offer names at most; the first in the order of their names.
pub const OFFERED_MAX: usize = 256;

impl Actions {
    /// What this action is like.
    pub fn traits(&self, action: &str) -> Traits {
        let harmless = |idempotent| Traits {
            idempotent,
            while_stopped: true,
            flight: false,
        };
        match action {
            "log" => harmless(true),
            "notify" | "config" | "id" => harmless(false),
            "execute" | "service_restart" | "reboot" => Traits::default(),
            other => {
                let own = &self.inner.setup.config.actions;
                own.get(other).map(traits_of).unwrap_or_default()
            }
        }
    }

    /// What this node can do that its peers cannot know by themselves.
    pub fn offer(&self) -> Offer {
        let own = self.inner.setup.config.actions.iter();
        let offered = |action: &Action| {
            let Traits {
                idempotent,
                while_stopped,
                flight,
            } = traits_of(action);
            OfferedAction {
                class: if flight {
                    OfferedClass::Flight
                } else {
                    OfferedClass::Ordinary
                },
                idempotent,
                while_stopped,
            }
        };
        let actions = own.take(OFFERED_MAX);
        Offer {
            actions: actions
                .map(|(name, action)| (name.as_str().to_owned(), offered(action)))
                .collect(),
        }
    }
}

fn traits_of(action: &Action) -> Traits {
    Traits {
        idempotent: action.idempotent,
        while_stopped: action.while_stopped,
        flight: action.class == Class::Flight,
    }
}
