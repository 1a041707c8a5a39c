//! What nodes have said that they can do, and how long an act waits for their word: whether it is one of flight decides
//! how long it may live and whether it may wait for its node.
//!
//! | a target | an act waits for its word |
//! |---|---|
//! | linked, and has said it over this link | no |
//! | linked, and silent about it | until [`OFFER_PATIENCE`] after its link came up |
//! | away, and this process has just started | until [`LINK_PATIENCE`] after that start, unless another target says that the action is an ordinary one |
//! | away | no: what it said last counts |

use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::message::{Offer, OfferedClass};
use tokio::sync::watch;

/// How long after a node's link came up its word is awaited. It is the first thing that a node says.
const OFFER_PATIENCE: Duration = Duration::from_millis(300);
/// How long after the start of this process the links of members are awaited: half of what an action of flight has.
const LINK_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked again.
const STEP: Duration = Duration::from_millis(10);
/// Built-in actions that act. None is of flight, and nodes do not tell of them.
const BUILT_IN: [&str; 7] = [
    "config",
    "execute",
    "id",
    "log",
    "notify",
    "reboot",
    "service_restart",
];

/// A node's word.
#[derive(Clone, Debug, Default)]
pub(super) struct Offered {
    /// What it said last, since this process started.
    offer: Option<Offer>,
    /// When its link came up; absent while it is away.
    linked: Option<Instant>,
    /// Whether it has said that over the link at hand.
    heard: bool,
}

impl Offered {
    /// A link has come up.
    pub(super) fn up(&mut self, now: Instant) {
        self.linked = Some(now);
        self.heard = false;
    }

    /// The link is gone.
    pub(super) fn down(&mut self) {
        self.linked = None;
    }

    /// It says what it can do.
    pub(super) fn say(&mut self, offer: Offer) {
        self.offer = Some(offer);
        self.heard = true;
    }

    fn class(&self, action: &str) -> Option<OfferedClass> {
        let actions = &self.offer.as_ref()?.actions;
        actions.get(action).map(|offered| offered.class)
    }

    fn standing(&self, action: &str) -> Standing {
        match self.linked {
            Some(_) if self.heard => Standing::Said {
                ordinary: self.class(action) == Some(OfferedClass::Ordinary),
            },
            Some(since) => Standing::Silent { since },
            None => Standing::Away,
        }
    }

    /// Whether the node is known to take an action for one of flight.
    pub(super) fn is_flight(&self, action: &str) -> bool {
        self.class(action) == Some(OfferedClass::Flight)
    }

    /// Whether the node is known to run an action while it is stopped.
    pub(super) fn runs_while_stopped(&self, action: &str) -> bool {
        let offer = self.offer.as_ref();
        offer.is_some_and(|offer| {
            offer
                .actions
                .get(action)
                .is_some_and(|offered| offered.while_stopped)
        })
    }

    /// Whether it has never said what it can do.
    pub(super) fn is_unknown(&self) -> bool {
        self.offer.is_none()
    }
}

/// What a target's word on an action is worth waiting for.
#[derive(Clone, Copy)]
enum Standing {
    /// It has said what it can do; whether this is an ordinary action there.
    Said { ordinary: bool },
    /// Linked since then, and has not said.
    Silent { since: Instant },
    /// Not linked.
    Away,
}

/// Until when the word of these is worth waiting for; `None` if it is not.
fn patience(all: impl Iterator<Item = Standing>, links_until: Instant, now: Instant) -> Option<Instant> {
    let (mut until, mut any_away, mut any_ordinary) = (None, false, false);
    for standing in all {
        match standing {
            Standing::Said { ordinary } => any_ordinary |= ordinary,
            Standing::Silent { since } => until = until.max(Some(since + OFFER_PATIENCE)),
            Standing::Away => any_away = true,
        }
    }
    if any_away && !any_ordinary {
        until = until.max(Some(links_until));
    }
    until.filter(|until| *until > now)
}

/// Waits for the word of targets as long as that is worth it: `started` is when this process was, and `give_up` when
/// whoever asks has no more time for it.
pub(super) async fn settle<'a>(
    targets: impl Iterator<Item = &'a watch::Receiver<Offered>> + Clone,
    action: &str,
    started: Instant,
    give_up: Instant,
) {
    if BUILT_IN.contains(&action) {
        return;
    }
    let links_until = (started + LINK_PATIENCE).min(give_up);
    loop {
        let now = clock::now();
        let all = targets.clone().map(|offered| offered.borrow().standing(action));
        let until = patience(all, links_until, now).map(|until| until.min(give_up));
        let Some(until) = until.filter(|until| *until > now) else {
            return;
        };
        clock::sleep_until(until.min(now + STEP)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use swarm_shared::proto::message::OfferedAction;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn offer(class: OfferedClass) -> Offer {
        let action = OfferedAction {
            class,
            ..OfferedAction::default()
        };
        Offer {
            actions: BTreeMap::from([("takeoff".to_owned(), action)]),
        }
    }

    fn linked(at: Instant, said: Option<OfferedClass>) -> Offered {
        let mut offered = Offered::default();
        offered.up(at);
        if let Some(class) = said {
            offered.say(offer(class));
        }
        offered
    }

    #[test]
    fn an_act_waits_for_who_may_still_say_that_it_is_one_of_flight() {
        let start = clock::now();
        let now = start + 50 * MS;
        let links_until = start + 1_000 * MS;
        let wait = |all: &[Offered]| {
            let all = all.iter().map(|offered| offered.standing("takeoff"));
            let until = patience(all, links_until, now);
            until.map(|until| until.saturating_duration_since(start).as_millis())
        };
        let flight = || linked(now, Some(OfferedClass::Flight));
        let ordinary = || linked(now, Some(OfferedClass::Ordinary));
        let silent = || linked(now, None);
        let away = Offered::default;

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
        let late = patience([Standing::Away].into_iter(), links_until, links_until);
        assert_eq!(late, None, "this process runs for long");
    }

    #[test]
    fn a_word_is_of_one_link_and_its_content_lasts() {
        let now = clock::now();
        let mut offered = linked(now, Some(OfferedClass::Flight));
        assert!(offered.is_flight("takeoff") && !offered.is_flight("land"));
        offered.down();
        assert!(offered.is_flight("takeoff"), "what it said last counts");
        offered.up(now);
        let standing = offered.standing("takeoff");
        assert!(
            matches!(standing, Standing::Silent { .. }),
            "not over this link yet"
        );
    }
}
