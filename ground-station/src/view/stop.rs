//! The progress of an emergency stop: which nodes have answered, and which have not.

use std::collections::BTreeSet;
use std::time::Duration;

use swarm_shared::proto::outcome::Outcome;

use swarm_shared::api::{Event, NodeRef};

/// Interval between two lines that name missing nodes, if these have changed.
const UNANSWERED_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two lines that name the same nodes.
const UNANSWERED_REPEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Most missing nodes that one line names.
const NAMES_MAX: usize = 12;

/// Collects acknowledgements.
#[derive(Debug, Default)]
pub struct StopProgress {
    targets: usize,
    unanswered: BTreeSet<NodeRef>,
    /// Bridged devices, which cannot acknowledge a stop: an all-clear must not count them.
    unconfirmed: usize,
    last_ms: f64,
    last_shown_after: Duration,
    /// Whether that line named the nodes that are missing now.
    is_shown: bool,
    is_completed: bool,
}

impl StopProgress {
    /// Handles an event of the stop.
    pub fn on_event(&mut self, event: &Event) {
        if let Event::Targets { targets } = event {
            self.targets = targets.len();
            self.unanswered = targets.iter().cloned().collect();
        } else if let Event::Acknowledged { node, ms } = event {
            self.on_answer(node, *ms);
        } else if let Event::Delivery(delivery) = event {
            match delivery.state {
                // A node that was given up has not answered: an all-clear would be false.
                Outcome::NoAnswer => {}
                Outcome::Unknown if self.unanswered.remove(&delivery.target()) => {
                    self.is_shown = false;
                    self.unconfirmed += 1;
                }
                Outcome::Unknown => {}
                Outcome::Done | Outcome::Failed | Outcome::Refused | Outcome::Expired => {
                    self.on_answer(&delivery.target(), delivery.ms);
                }
            }
        }
    }

    fn on_answer(&mut self, node: &NodeRef, ms: f64) {
        if self.unanswered.remove(node) {
            self.is_shown = false;
            self.last_ms = ms;
        }
    }

    /// Returned once, when all answers are in: how many came, and how long it took.
    pub fn completion_line(&mut self) -> Option<String> {
        if self.is_completed || self.targets == 0 || !self.unanswered.is_empty() {
            return None;
        }
        self.is_completed = true;
        let (targets, last_ms, unknown) = (self.targets, self.last_ms, self.unconfirmed);
        Some(match targets - unknown {
            answered if unknown == 0 => format!("all {answered} answered, the last after {last_ms:.1} ms"),
            0 => format!("none of {targets} answered: it is unknown whether they received it"),
            answered => format!(
                "{answered} of {targets} answered, the last after {last_ms:.1} ms; it is unknown whether the other {unknown} received it"
            ),
        })
    }

    /// Whether a node has not answered; `unknown` is returned before the targets are known.
    pub fn has_unanswered(&self, unknown: bool) -> bool {
        !self.unanswered.is_empty() || (self.targets == 0 && unknown)
    }

    /// A line that names the missing nodes: a second after a change, and every ten seconds.
    pub fn unanswered_line(&mut self, after: Duration) -> Option<String> {
        let pause = if self.is_shown {
            UNANSWERED_REPEAT_INTERVAL
        } else {
            UNANSWERED_INTERVAL
        };
        if self.unanswered.is_empty() || after < self.last_shown_after + pause {
            return None;
        }
        (self.last_shown_after, self.is_shown) = (after, true);
        let named: Vec<&str> = self
            .unanswered
            .iter()
            .take(NAMES_MAX)
            .map(|node| node.node.as_str())
            .collect();
        let more = match self.unanswered.len().saturating_sub(NAMES_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let answered = self.targets - self.unanswered.len() - self.unconfirmed;
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
    use swarm_shared::api::Delivery;

    #[test]
    fn unanswered_nodes_are_named_until_all_answered() {
        let node = |n: u8| NodeRef {
            node: NodeName::parse(&format!("d{n}")).expect("a name"),
            id: PublicKey([n; 32]).id(),
        };
        let mut stop = StopProgress::default();
        stop.on_event(&Event::Targets {
            targets: vec![node(1), node(2)],
        });
        assert_eq!(stop.unanswered_line(Duration::from_millis(900)), None);
        let given_up = Delivery::new(node(2), Reply::ended(Outcome::NoAnswer, "interrupted"), 900.0);
        stop.on_event(&Event::Delivery(given_up));
        stop.on_event(&Event::Acknowledged {
            node: node(1),
            ms: 3.0,
        });
        assert_eq!(stop.completion_line(), None, "who was given up has not answered");
        let line = stop.unanswered_line(Duration::from_secs(1)).expect("a second");
        assert!(line.starts_with("1 of 2 answered; NO ANSWER from d2;"), "{line}");
        let again: Vec<u64> = (1_100..=21_500)
            .step_by(200)
            .filter(|ms| stop.unanswered_line(Duration::from_millis(*ms)).is_some())
            .collect();
        assert_eq!((again, stop.completion_line()), (vec![11_100, 21_100], None));
        stop.on_event(&Event::Acknowledged {
            node: node(2),
            ms: 7.25,
        });
        assert_eq!(
            stop.completion_line().as_deref(),
            Some("all 2 answered, the last after 7.2 ms")
        );
        assert_eq!(
            (
                stop.completion_line(),
                stop.unanswered_line(Duration::from_secs(99))
            ),
            (None, None)
        );
    }

    #[test]
    fn unconfirmed_stops_do_not_count_as_answers() {
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
            let mut stop = StopProgress::default();
            stop.on_event(&Event::Targets {
                targets: targets.iter().map(|n| node(*n)).collect(),
            });
            events.iter().for_each(|event| stop.on_event(event));
            stop
        };
        let heard = || Event::Acknowledged {
            node: node(1),
            ms: 3.0,
        };
        assert_eq!(
            told(&[1, 2], &[heard(), unknown(2)]).completion_line().as_deref(),
            Some("1 of 2 answered, the last after 3.0 ms; it is unknown whether the other 1 received it")
        );
        assert_eq!(
            told(&[2], &[unknown(2)]).completion_line().as_deref(),
            Some("none of 1 answered: it is unknown whether they received it")
        );
        let line = told(&[1, 2], &[unknown(2)]).unanswered_line(Duration::from_secs(1));
        assert!(line.is_some_and(|line| line.starts_with("0 of 2 answered; NO ANSWER from d1;")));
        assert_eq!(
            told(&[1], &[heard(), unknown(1)]).completion_line().as_deref(),
            Some("all 1 answered, the last after 3.0 ms"),
            "it heard, whatever became of the rest"
        );
    }

    #[test]
    fn changed_unanswered_nodes_are_named_in_a_second() {
        let node = |n: u8| NodeRef {
            node: NodeName::parse(&format!("d{n}")).expect("a name"),
            id: PublicKey([n; 32]).id(),
        };
        let mut stop = StopProgress::default();
        stop.on_event(&Event::Targets {
            targets: (1..4).map(node).collect(),
        });
        assert!(stop.unanswered_line(Duration::from_secs(1)).is_some());
        stop.on_event(&Event::Acknowledged {
            node: node(1),
            ms: 1_100.0,
        });
        assert_eq!(stop.unanswered_line(Duration::from_millis(1_900)), None);
        let line = stop
            .unanswered_line(Duration::from_secs(2))
            .expect("another line");
        assert!(
            line.starts_with("1 of 3 answered; NO ANSWER from d2, d3;"),
            "{line}"
        );
    }
}
