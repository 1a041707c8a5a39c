//! Catalogs: the actions that each node offers. A command waits for them, because a flight action has a short time to live
//! and is not queued for absent nodes.
//!
//! | a target is | a command waits for its catalog |
//! |---|---|
//! | linked, and has sent it over this link | no |
//! | linked, and has not sent it | until [`CATALOG_TIMEOUT`] after its link came up |
//! | absent, and this process has just started | until [`LINK_TIMEOUT`] after the start, unless another target declares the action ordinary |
//! | absent | no: its last catalog counts |

use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::message::{ActionCatalog, TtlClass};
use tokio::sync::watch;

/// How long after a link came up the node's catalog is waited for. It is the first frame that a node sends.
const CATALOG_TIMEOUT: Duration = Duration::from_millis(300);
/// How long after the start of this process links of members are waited for: half of a flight action's time to live.
const LINK_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval of looking again.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Built-in actions that act. None is a flight action, and catalogs do not contain them.
const BUILT_IN_ACTIONS: [&str; 7] = [
    "config",
    "execute",
    "id",
    "log",
    "notify",
    "reboot",
    "service_restart",
];

/// The catalog of one node, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct KnownActions {
    /// The last one since this process started.
    catalog: Option<ActionCatalog>,
    /// When its link came up; absent without a link.
    linked_at: Option<Instant>,
    /// Whether it came over the present link.
    is_current: bool,
}

impl KnownActions {
    /// A link has come up.
    pub(in crate::engine) fn on_connected(&mut self, now: Instant) {
        self.linked_at = Some(now);
        self.is_current = false;
    }

    /// The link is lost.
    pub(in crate::engine) fn on_disconnected(&mut self) {
        self.linked_at = None;
    }

    /// The node has sent its catalog.
    pub(in crate::engine) fn set_catalog(&mut self, catalog: ActionCatalog) {
        self.catalog = Some(catalog);
        self.is_current = true;
    }

    fn class(&self, action: &str) -> Option<TtlClass> {
        let actions = &self.catalog.as_ref()?.actions;
        actions.get(action).map(|offered| offered.class)
    }

    fn state(&self, action: &str) -> CatalogState {
        match self.linked_at {
            Some(_) if self.is_current => CatalogState::Received {
                is_ordinary: self.class(action) == Some(TtlClass::Ordinary),
            },
            Some(since) => CatalogState::Awaited { since },
            None => CatalogState::Offline,
        }
    }

    /// Whether the node declares it a flight action.
    pub(in crate::engine) fn is_flight_action(&self, action: &str) -> bool {
        self.class(action) == Some(TtlClass::Flight)
    }

    /// Whether the node declares that it runs the action while it is stopped.
    pub(in crate::engine) fn can_run_while_stopped(&self, action: &str) -> bool {
        let offer = self.catalog.as_ref();
        offer.is_some_and(|offer| {
            offer
                .actions
                .get(action)
                .is_some_and(|offered| offered.while_stopped)
        })
    }

    /// Whether no catalog has come yet.
    pub(in crate::engine) fn is_unknown(&self) -> bool {
        self.catalog.is_none()
    }
}

/// The state of a target's catalog, for one action.
#[derive(Clone, Copy)]
enum CatalogState {
    /// The catalog has come over the present link; whether it declares the action ordinary.
    Received { is_ordinary: bool },
    /// Linked since then, and the catalog has not come.
    Awaited { since: Instant },
    /// Not linked.
    Offline,
}

/// Until when to wait for these catalogs; `None` if not at all.
fn wait_deadline(
    all: impl Iterator<Item = CatalogState>,
    links_until: Instant,
    now: Instant,
) -> Option<Instant> {
    let (mut until, mut any_away, mut any_ordinary) = (None, false, false);
    for state in all {
        match state {
            CatalogState::Received {
                is_ordinary: ordinary,
            } => any_ordinary |= ordinary,
            CatalogState::Awaited { since } => until = until.max(Some(since + CATALOG_TIMEOUT)),
            CatalogState::Offline => any_away = true,
        }
    }
    if any_away && !any_ordinary {
        until = until.max(Some(links_until));
    }
    until.filter(|until| *until > now)
}

/// Waits for the catalogs of targets, at most until `deadline`. `started` is when this process started.
pub(in crate::engine) async fn wait_for_catalogs<'a>(
    targets: impl Iterator<Item = &'a watch::Receiver<KnownActions>> + Clone,
    action: &str,
    started: Instant,
    deadline: Instant,
) {
    if BUILT_IN_ACTIONS.contains(&action) {
        return;
    }
    let links_until = (started + LINK_TIMEOUT).min(deadline);
    loop {
        let now = clock::now();
        let all = targets.clone().map(|offered| offered.borrow().state(action));
        let until = wait_deadline(all, links_until, now).map(|until| until.min(deadline));
        let Some(until) = until.filter(|until| *until > now) else {
            return;
        };
        clock::sleep_until(until.min(now + POLL_INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use swarm_shared::proto::message::ActionInfo;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn catalog(class: TtlClass) -> ActionCatalog {
        let action = ActionInfo {
            class,
            ..ActionInfo::default()
        };
        ActionCatalog {
            actions: BTreeMap::from([("takeoff".to_owned(), action)]),
        }
    }

    fn linked(at: Instant, said: Option<TtlClass>) -> KnownActions {
        let mut offered = KnownActions::default();
        offered.on_connected(at);
        if let Some(class) = said {
            offered.set_catalog(catalog(class));
        }
        offered
    }

    #[test]
    fn commands_wait_for_catalogs_of_possible_flight_actions() {
        let start = clock::now();
        let now = start + 50 * MS;
        let links_until = start + 1_000 * MS;
        let wait = |all: &[KnownActions]| {
            let all = all.iter().map(|offered| offered.state("takeoff"));
            let until = wait_deadline(all, links_until, now);
            until.map(|until| until.saturating_duration_since(start).as_millis())
        };
        let flight = || linked(now, Some(TtlClass::Flight));
        let ordinary = || linked(now, Some(TtlClass::Ordinary));
        let silent = || linked(now, None);
        let away = KnownActions::default;

        assert_eq!(wait(&[flight(), ordinary()]), None);
        assert_eq!(wait(&[silent()]), Some(350));
        assert_eq!(wait(&[ordinary(), silent()]), Some(350));
        assert_eq!(wait(&[away()]), Some(1_000));
        assert_eq!(
            wait(&[flight(), away()]),
            Some(1_000),
            "away, it would be left out"
        );
        assert_eq!(wait(&[ordinary(), away()]), None);
        assert_eq!(wait(&[linked(start - 400 * MS, None)]), None, "it never says");
        let late = wait_deadline([CatalogState::Offline].into_iter(), links_until, links_until);
        assert_eq!(late, None, "this process runs for long");
    }

    #[test]
    fn catalog_outlives_its_link_but_must_be_confirmed() {
        let now = clock::now();
        let mut offered = linked(now, Some(TtlClass::Flight));
        assert!(offered.is_flight_action("takeoff") && !offered.is_flight_action("land"));
        offered.on_disconnected();
        assert!(offered.is_flight_action("takeoff"), "what it said last counts");
        offered.on_connected(now);
        let standing = offered.state("takeoff");
        assert!(
            matches!(standing, CatalogState::Awaited { .. }),
            "not over this link yet"
        );
    }
}
