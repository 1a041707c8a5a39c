//! An emergency stop as it goes on: who has answered, and who has not.

use std::collections::BTreeSet;
use std::time::Duration;

use swarm_shared::proto::outcome::Outcome;

use crate::fleet::{Event, NodeRef};

/// Between two lines that name the missing, if they are others.
const SAY_EVERY: Duration = Duration::from_secs(1);
/// Between two lines that name the same.
const REPEAT_EVERY: Duration = Duration::from_secs(10);
/// Most of the missing that one line names.
const NAMED_MAX: usize = 12;

/// Acknowledgements as they come.
#[derive(Debug, Default)]
pub struct Acknowledged {
    targets: usize,
    missing: BTreeSet<NodeRef>,
    /// Who was told and cannot say that it heard: drones of other programs. An all-clear must not count them.
    unconfirmed: usize,
    last_ms: f64,
    said: Duration,
    /// Whether that line named those who are missing now.
    named: bool,
    done: bool,
}

impl Acknowledged {
    /// Takes in what came back.
    pub fn add(&mut self, event: &Event) {
        match event {
            Event::Targets { targets } => {
                self.targets = targets.len();
                self.missing = targets.iter().cloned().collect();
            }
            Event::Acknowledged { node, ms } => self.answered(node, *ms),
            // Whoever was given up has not answered: an all-clear would be false.
            Event::Delivery(delivery) if delivery.state == Outcome::NoAnswer => {}
            Event::Delivery(delivery) => {
                let node = NodeRef {
                    node: delivery.node.clone(),
                    id: delivery.id,
                };
                if delivery.state != Outcome::Unknown {
                    self.answered(&node, delivery.ms);
                } else if self.missing.remove(&node) {
                    self.named = false;
                    self.unconfirmed += 1;
                }
            }
            Event::Progress { .. }
            | Event::Stage { .. }
            | Event::Command(_)
            | Event::About(_)
            | Event::Past(_)
            | Event::Audit(_)
            | Event::User(_)
            | Event::Token(_)
            | Event::Told { .. }
            | Event::Telemetry { .. }
            | Event::Peer(_)
            | Event::Missed { .. }
            | Event::Node(_)
            | Event::Note { .. }
            | Event::Issued { .. }
            | Event::Membership(_)
            | Event::Invitation(_)
            | Event::Member(_)
            | Event::Pending(_)
            | Event::Failed { .. }
            | Event::End => {}
        }
    }

    fn answered(&mut self, node: &NodeRef, ms: f64) {
        if self.missing.remove(node) {
            self.named = false;
            self.last_ms = ms;
        }
    }

    /// Once, when no answer is to come any more: how many came, and how long it took.
    pub fn all_in(&mut self) -> Option<String> {
        if self.done || self.targets == 0 || !self.missing.is_empty() {
            return None;
        }
        self.done = true;
        let (targets, last_ms, unknown) = (self.targets, self.last_ms, self.unconfirmed);
        Some(match targets - unknown {
            answered if unknown == 0 => format!("all {answered} answered, the last after {last_ms:.1} ms"),
            0 => format!("none of {targets} answered: it is unknown of all whether they heard"),
            answered => format!(
                "{answered} of {targets} answered, the last after {last_ms:.1} ms; it is unknown of {unknown} whether they heard"
            ),
        })
    }

    /// Whether somebody has not answered; `unknown`: what to say if it is not known yet who is meant.
    pub fn some_missing(&self, unknown: bool) -> bool {
        !self.missing.is_empty() || (self.targets == 0 && unknown)
    }

    /// Who is missing: a second after that has changed, and every ten seconds.
    pub fn missing(&mut self, after: Duration) -> Option<String> {
        let pause = if self.named { REPEAT_EVERY } else { SAY_EVERY };
        if self.missing.is_empty() || after < self.said + pause {
            return None;
        }
        (self.said, self.named) = (after, true);
        let named: Vec<&str> = self
            .missing
            .iter()
            .take(NAMED_MAX)
            .map(|node| node.node.as_str())
            .collect();
        let more = match self.missing.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let answered = self.targets - self.missing.len() - self.unconfirmed;
        Some(format!(
            "{answered} of {} answered; NO ANSWER from {}{more}; still trying, Ctrl-C gives up",
            self.targets,
            named.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use swarm_shared::proto::id::{NodeName, PublicKey};
    use swarm_shared::proto::outcome::Reply;

    use super::*;
    use crate::fleet::Delivery;

    #[test]
    fn it_names_the_missing_and_says_when_all_are_in() {
        let node = |n: u8| NodeRef {
            node: NodeName::parse(&format!("d{n}")).expect("a name"),
            id: PublicKey([n; 32]).id(),
        };
        let mut stop = Acknowledged::default();
        stop.add(&Event::Targets {
            targets: vec![node(1), node(2)],
        });
        assert_eq!(stop.missing(Duration::from_millis(900)), None);
        let given_up = Delivery::new(node(2), Reply::ended(Outcome::NoAnswer, "interrupted"), 900.0);
        stop.add(&Event::Delivery(given_up));
        stop.add(&Event::Acknowledged {
            node: node(1),
            ms: 3.0,
        });
        assert_eq!(stop.all_in(), None, "who was given up has not answered");
        let line = stop.missing(Duration::from_secs(1)).expect("a second");
        assert!(line.starts_with("1 of 2 answered; NO ANSWER from d2;"), "{line}");
        let again: Vec<u64> = (1_100..=21_500)
            .step_by(200)
            .filter(|ms| stop.missing(Duration::from_millis(*ms)).is_some())
            .collect();
        assert_eq!((again, stop.all_in()), (vec![11_100, 21_100], None));
        stop.add(&Event::Acknowledged {
            node: node(2),
            ms: 7.25,
        });
        assert_eq!(
            stop.all_in().as_deref(),
            Some("all 2 answered, the last after 7.2 ms")
        );
        assert_eq!(
            (stop.all_in(), stop.missing(Duration::from_secs(99))),
            (None, None)
        );
    }

    #[test]
    fn who_cannot_confirm_is_not_counted_as_an_answer() {
        let node = |n: u8| NodeRef {
            node: NodeName::parse(&format!("d{n}")).expect("a name"),
            id: PublicKey([n; 32]).id(),
        };
        let unknown = |n| {
            Event::Delivery(Delivery::new(
                node(n),
                Reply::ended(Outcome::Unknown, "sent"),
                0.5,
            ))
        };
        let told = |targets: &[u8], events: &[Event]| {
            let mut stop = Acknowledged::default();
            stop.add(&Event::Targets {
                targets: targets.iter().map(|n| node(*n)).collect(),
            });
            events.iter().for_each(|event| stop.add(event));
            stop
        };
        let heard = || Event::Acknowledged {
            node: node(1),
            ms: 3.0,
        };
        assert_eq!(
            told(&[1, 2], &[heard(), unknown(2)]).all_in().as_deref(),
            Some("1 of 2 answered, the last after 3.0 ms; it is unknown of 1 whether they heard")
        );
        assert_eq!(
            told(&[2], &[unknown(2)]).all_in().as_deref(),
            Some("none of 1 answered: it is unknown of all whether they heard")
        );
        let line = told(&[1, 2], &[unknown(2)]).missing(Duration::from_secs(1));
        assert!(line.is_some_and(|line| line.starts_with("0 of 2 answered; NO ANSWER from d1;")));
        assert_eq!(
            told(&[1], &[heard(), unknown(1)]).all_in().as_deref(),
            Some("all 1 answered, the last after 3.0 ms"),
            "it heard, whatever became of the rest"
        );
    }

    #[test]
    fn it_names_others_soon() {
        let node = |n: u8| NodeRef {
            node: NodeName::parse(&format!("d{n}")).expect("a name"),
            id: PublicKey([n; 32]).id(),
        };
        let mut stop = Acknowledged::default();
        stop.add(&Event::Targets {
            targets: (1..4).map(node).collect(),
        });
        assert!(stop.missing(Duration::from_secs(1)).is_some());
        stop.add(&Event::Acknowledged {
            node: node(1),
            ms: 1_100.0,
        });
        assert_eq!(stop.missing(Duration::from_millis(1_900)), None);
        let line = stop.missing(Duration::from_secs(2)).expect("another line");
        assert!(
            line.starts_with("1 of 3 answered; NO ANSWER from d2, d3;"),
            "{line}"
        );
    }
}
