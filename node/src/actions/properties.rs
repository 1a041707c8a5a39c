//! The properties of each action: what the executor must know before it runs one.
//!
//! | action | runs again after a crash during it | runs while stopped |
//! |---|---|---|
//! | `log` | yes: it changes nothing | yes |
//! | `notify` | no | yes: the operator may want to explain a stop |
//! | `config`, `id` (changing) | no: it could undo a later change | yes: it moves nothing |
//! | `execute`, `service_restart`, `reboot` | no | no |
//! | of the configuration | if `idempotent = true` | if `while_stopped = true` |
//! | of a plug-in | as registered; its requests: yes | as registered; its requests: yes |
//!
//! Only actions of the configuration and of plug-ins with `class = "flight"` are flight actions, and only those of
//! them with a name in [`LANDING_ACTIONS`] are landing actions. An unknown action is refused when it runs.

use swarm_shared::proto::delivery::executor::ActionProperties;
use swarm_shared::proto::message::{ActionCatalog, ActionInfo, TtlClass};
use tokio::sync::watch;

use super::Actions;
use crate::config::{Action, Class};
use crate::plugins::PluginAction;

/// Most actions in a catalog: those of the configuration before those of plug-ins, in the order of their names.
pub const CATALOG_ACTIONS_MAX: usize = 256;

/// The names, which are clever-show's, of actions that interrupt or end a flight.
pub(crate) const LANDING_ACTIONS: [&str; 5] = ["pause", "stop", "land", "emergency_land", "disarm"];

impl Actions {
    /// The properties of this action.
    pub fn properties(&self, action: &str) -> ActionProperties {
        let harmless = |idempotent| ActionProperties {
            idempotent,
            while_stopped: true,
            ..ActionProperties::default()
        };
        match action {
            "log" => harmless(true),
            "notify" | "config" | "id" => harmless(false),
            "execute" | "service_restart" | "reboot" => ActionProperties::default(),
            other => {
                let own = &self.inner.setup.config.actions;
                let plugins = || {
                    self.inner
                        .setup
                        .plugins
                        .find(other)
                        .map(|found| plugin_action_properties(&found))
                };
                let known = own.get(other).map(custom_action_properties).or_else(plugins);
                known.map_or_else(ActionProperties::default, |traits| ActionProperties {
                    ends_flight: LANDING_ACTIONS.contains(&other),
                    ..traits
                })
            }
        }
    }

    /// The actions whose properties a station cannot know by itself.
    pub fn catalog(&self) -> ActionCatalog {
        let own = self.inner.setup.config.actions.iter();
        let own = own.map(|(name, action)| {
            (
                name.as_str().to_owned(),
                action_info(custom_action_properties(action)),
            )
        });
        let plugins = self.inner.setup.plugins.actions().into_iter();
        let plugins = plugins.map(|action| {
            (
                action.name.clone(),
                action_info(plugin_action_properties(&action)),
            )
        });
        ActionCatalog {
            actions: own.chain(plugins).take(CATALOG_ACTIONS_MAX).collect(),
        }
    }

    /// Changes when [`Self::catalog`] does.
    pub fn catalog_changes(&self) -> watch::Receiver<u64> {
        self.inner.setup.plugins.changes()
    }
}

fn action_info(properties: ActionProperties) -> ActionInfo {
    let ActionProperties {
        idempotent,
        while_stopped,
        flight,
        ends_flight: _,
    } = properties;
    ActionInfo {
        class: if flight {
            TtlClass::Flight
        } else {
            TtlClass::Ordinary
        },
        idempotent,
        while_stopped,
    }
}

fn plugin_action_properties(action: &PluginAction) -> ActionProperties {
    let entry = &action.entry;
    ActionProperties {
        idempotent: entry.idempotent,
        while_stopped: entry.while_stopped,
        flight: entry.flight,
        ends_flight: false,
    }
}

fn custom_action_properties(action: &Action) -> ActionProperties {
    ActionProperties {
        idempotent: action.idempotent,
        while_stopped: action.while_stopped,
        flight: action.class == Class::Flight,
        ends_flight: false,
    }
}
