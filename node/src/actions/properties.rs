//! What each action is like: what the desk has to know before it lets one run.
//!
//! | action | runs again after a crash midway | runs while stopped |
//! |---|---|---|
//! | `log` | yes: it changes nothing | yes |
//! | `notify` | no | yes: whoever stops a fleet wants to say why |
//! | `config`, `id` (changing) | no: a later change by somebody else may have come between | yes: nothing moves by it |
//! | `execute`, `service_restart`, `reboot` | no | no |
//! | the owner's | if `idempotent = true` | if `while_stopped = true` |
//! | a plug-in's | as it registered; its questions yes | as it registered; its questions yes |
//!
//! None but an owner's or a plug-in's with `class = "flight"` is a flight action, and none but one of theirs that has a name
//! of [`ENDS_FLIGHT`] ends a flight. What is not known is refused when it runs.

use swarm_shared::proto::delivery::executor::Traits;
use swarm_shared::proto::message::{Offer, OfferedAction, OfferedClass};
use tokio::sync::watch;

use super::Actions;
use crate::config::{Action, Class};
use crate::plugins::PluginAction;

/// How many actions an offer names at most: the owner's before those of plug-ins, in the order of their names.
pub const OFFERED_MAX: usize = 256;

/// The names, which are clever-show's, of actions after which a drone does not go on with what it did.
pub(crate) const ENDS_FLIGHT: [&str; 5] = ["pause", "stop", "land", "emergency_land", "disarm"];

impl Actions {
    /// What this action is like.
    pub fn traits(&self, action: &str) -> Traits {
        let harmless = |idempotent| Traits {
            idempotent,
            while_stopped: true,
            ..Traits::default()
        };
        match action {
            "log" => harmless(true),
            "notify" | "config" | "id" => harmless(false),
            "execute" | "service_restart" | "reboot" => Traits::default(),
            other => {
                let own = &self.inner.setup.config.actions;
                let plugins = || {
                    self.inner
                        .setup
                        .plugins
                        .find(other)
                        .map(|found| traits_of_plugins(&found))
                };
                let known = own.get(other).map(traits_of).or_else(plugins);
                known.map_or_else(Traits::default, |traits| Traits {
                    ends_flight: ENDS_FLIGHT.contains(&other),
                    ..traits
                })
            }
        }
    }

    /// What this node can do that its peers cannot know by themselves.
    pub fn offer(&self) -> Offer {
        let own = self.inner.setup.config.actions.iter();
        let own = own.map(|(name, action)| (name.as_str().to_owned(), offered(traits_of(action))));
        let plugins = self.inner.setup.plugins.actions().into_iter();
        let plugins = plugins.map(|action| (action.name.clone(), offered(traits_of_plugins(&action))));
        Offer {
            actions: own.chain(plugins).take(OFFERED_MAX).collect(),
        }
    }

    /// Changes when [`Self::offer`] does.
    pub fn offer_changes(&self) -> watch::Receiver<u64> {
        self.inner.setup.plugins.changes()
    }
}

fn offered(traits: Traits) -> OfferedAction {
    let Traits {
        idempotent,
        while_stopped,
        flight,
        ends_flight: _,
    } = traits;
    OfferedAction {
        class: if flight {
            OfferedClass::Flight
        } else {
            OfferedClass::Ordinary
        },
        idempotent,
        while_stopped,
    }
}

fn traits_of_plugins(action: &PluginAction) -> Traits {
    let entry = &action.entry;
    Traits {
        idempotent: entry.idempotent,
        while_stopped: entry.while_stopped,
        flight: entry.flight,
        ends_flight: false,
    }
}

fn traits_of(action: &Action) -> Traits {
    Traits {
        idempotent: action.idempotent,
        while_stopped: action.while_stopped,
        flight: action.class == Class::Flight,
        ends_flight: false,
    }
}
