//! The station's side of one stop: whom to send it to and when, and who has answered.
//!
//! | time | what goes out |
//! |---|---|
//! | at once | the order over the link of each target that is linked, and a datagram |
//! | [`BURST_MS`] | datagrams |
//! | every [`REPEAT_INTERVAL`] after them | a datagram, and the order over each link, while somebody has not answered |
//! | the link of a target that has not said all comes up | the order over it |
//!
//! It ends when every target has answered, or when its owner gives up. An answer counts for the order if the node has
//! heard one of this station that is as new, and not newer than this station has given: a node that has heard a newer one
//! has met a station that counts from an older store, and takes nothing but a higher number. Every order anew stops again
//! those who have stopped already, so it is given anew at most once in a second and eight times: a bad node
//! that always tells a higher number makes the others do no more than that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::order::STOP_NUMBER_TOLD_MAX;
use crate::proto::id::PeerId;
use crate::proto::message::{StopCommand, Stopped};
use crate::proto::outcome::{Outcome, Reply};

/// When datagrams go out, in milliseconds since the stop: five, so that most nodes hear one where many are lost.
pub const BURST_MS: [u64; 5] = [0, 20, 60, 140, 300];
/// Time between two rounds for those that have not answered.
pub const REPEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two orders anew of one stop.
const ANEW_INTERVAL: Duration = Duration::from_secs(1);
/// Orders anew that do not wait for that: with few nodes they do, and the third counts on from all that were told.
const ANEW_AT_ONCE: u8 = 2;
/// How often a stop is given anew.
const ANEW_MAX: u8 = 8;

/// What came of a report.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It says nothing new about this stop.
    Nothing,
    /// The node is stopped, which it had not said before; more is to come.
    Stopped,
    /// The node has said all.
    Ended(Reply),
    /// The node has heard a higher number of this station than this station knows: give the order anew, with a number
    /// above this one.
    CountOn(u64),
}

/// What is to go out now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Targets that have not answered: the order goes over their links, where there are any, and to where they were
    /// seen last.
    pub to: Vec<PeerId>,
    /// Whether the links get it too; else only a datagram goes out.
    pub links: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    Stopped,
    Ended,
}

/// One stop; see the module.
#[derive(Debug)]
pub struct StopCall {
    /// The first of its orders' numbers.
    number: u64,
    targets: BTreeMap<PeerId, Answer>,
    start: Instant,
    /// Datagrams of the burst that went out.
    burst: usize,
    /// When the next round is due.
    next: Instant,
    /// How often it was given anew, and when it may be again.
    anew: u8,
    anew_from: Instant,
    /// The highest number that a node has told.
    told_max: u64,
}

impl StopCall {
    /// A stop of these targets, by orders from `number` on.
    pub fn new(number: u64, targets: impl IntoIterator<Item = PeerId>, now: Instant) -> Self {
        Self {
            number,
            targets: targets.into_iter().map(|id| (id, Answer::None)).collect(),
            start: now,
            burst: 0,
            next: now,
            anew: 0,
            anew_from: now,
            told_max: 0,
        }
    }

    /// The order is given anew, from `number` on: all who have not answered are sent to as at first.
    pub fn give_anew(&mut self, number: u64, now: Instant) {
        (self.number, self.start, self.burst, self.next) = (number, now, 0, now);
    }

    /// Who has not answered.
    pub fn unanswered(&self) -> impl Iterator<Item = PeerId> {
        self.with(Answer::None)
    }

    /// Who has answered and not said all.
    pub fn at_work(&self) -> impl Iterator<Item = PeerId> {
        self.with(Answer::Stopped)
    }

    fn with(&self, answer: Answer) -> impl Iterator<Item = PeerId> {
        let those = self.targets.iter().filter(move |(_, have)| **have == answer);
        those.map(|(id, _)| *id)
    }

    /// Whether every target has said all.
    pub fn is_over(&self) -> bool {
        self.targets.values().all(|answer| *answer == Answer::Ended)
    }

    /// Whether the burst of datagrams goes on, whoever has answered: there may be nodes that the station does not know.
    fn bursts(&self) -> bool {
        self.burst < BURST_MS.len()
    }

    /// When something is to go out next; `None` when nothing is.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.bursts() || self.unanswered().next().is_some()).then_some(self.next)
    }

    /// What is to go out, if its time has come.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Round> {
        if now < self.poll_timeout()? {
            return None;
        }
        let round = Round {
            to: self.unanswered().collect(),
            links: self.burst == 0 || !self.bursts(),
        };
        self.burst = (self.burst + 1).min(BURST_MS.len());
        self.next = match BURST_MS.get(self.burst) {
            // From the start on, so that a late one does not put off the others.
            Some(after) => now.max(self.start + Duration::from_millis(*after)),
            None => now + REPEAT_INTERVAL,
        };
        Some(round)
    }

    /// Whether the order is to go over the link of `peer`, which has just come up: unless it has said all. One that
    /// was stopped may have restarted before the order was in its journal, and then it has never heard it.
    pub fn up(&self, peer: &PeerId) -> bool {
        self.targets
            .get(peer)
            .is_some_and(|answer| *answer != Answer::Ended)
    }

    /// Takes a node's report. `given` is the highest number that this station has given.
    pub fn report(&mut self, peer: &PeerId, report: &Stopped, given: u64, now: Instant) -> Verdict {
        let Some(answer) = self.targets.get_mut(peer) else {
            return Verdict::Nothing;
        };
        if *answer == Answer::Ended {
            return Verdict::Nothing;
        }
        if report.not_meant && report.number >= self.number && report.number <= given {
            *answer = Answer::Ended;
            let error = report.error.clone();
            let error = error.unwrap_or_else(|| "it says that the selector does not mean it".to_owned());
            return Verdict::Ended(Reply::refused(error));
        }
        if report.seen < self.number {
            // It restarted before the order was in its journal: it goes again, and has to be told again.
            *answer = Answer::None;
            return Verdict::Nothing;
        }
        if report.seen > given {
            if report.seen > STOP_NUMBER_TOLD_MAX {
                // Nonsense, and nothing is believed of a node that tells it.
                return Verdict::Nothing;
            }
            self.told_max = self.told_max.max(report.seen);
            let soon = self.anew < ANEW_AT_ONCE;
            if self.anew >= ANEW_MAX || (!soon && now < self.anew_from) {
                // It is asked again every second, and says so again; the next order counts on from this, too.
                return Verdict::Nothing;
            }
            self.anew += 1;
            self.anew_from = now + ANEW_INTERVAL;
            return Verdict::CountOn(self.told_max);
        }
        if let Some(reply) = ended(report) {
            *answer = Answer::Ended;
            return Verdict::Ended(reply);
        }
        if *answer == Answer::Stopped {
            return Verdict::Nothing;
        }
        *answer = Answer::Stopped;
        Verdict::Stopped
    }
}

/// How a delivery ended whose node has heard the order; `None` while something is at work there.
fn ended(report: &Stopped) -> Option<Reply> {
    let value = serde_json::json!({
        "stopped": report.stopped,
        "number": report.number,
        "latched": report.latched,
        "command": report.command,
    });
    if !report.stopped {
        // Whoever stops it must not take it for stopped.
        return Some(Reply {
            value: Some(value),
            ..Reply::failed("it was released meanwhile")
        });
    }
    let done = Reply::done(value.clone());
    match (report.command, report.latched, &report.error) {
        (StopCommand::Running, _, _) | (StopCommand::None | StopCommand::Done, false, None) => None,
        (StopCommand::None | StopCommand::Done, true, _) => Some(done),
        (StopCommand::Failed, _, error) | (StopCommand::None | StopCommand::Done, false, error) => {
            let error = error
                .clone()
                .unwrap_or_else(|| "its emergency_stop command failed".to_owned());
            Some(Reply {
                state: Outcome::Failed,
                value: Some(value),
                ..Reply::failed(error)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::id::PublicKey;

    fn peer(n: u8) -> PeerId {
        PublicKey([n; 32]).id()
    }

    fn start() -> Instant {
        crate::net::clock::now()
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn report(seen: u64) -> Stopped {
        Stopped {
            stopped: true,
            issuer: peer(9),
            number: seen,
            latched: true,
            command: StopCommand::None,
            error: None,
            since_ms: 0,
            seen,
            not_meant: false,
        }
    }

    fn state(verdict: Verdict) -> Option<Outcome> {
        match verdict {
            Verdict::Ended(reply) => Some(reply.state),
            Verdict::Nothing | Verdict::Stopped | Verdict::CountOn(_) => None,
        }
    }

    #[test]
    fn five_datagrams_go_out_and_then_one_a_second_while_somebody_is_missing() {
        let start = start();
        let mut call = StopCall::new(10, [peer(1), peer(2)], start);
        let mut sent = Vec::new();
        for ms in 0..3_500 {
            if let Some(round) = call.handle_timeout(after(start, ms)) {
                sent.push((ms, round.links, round.to.len()));
            }
        }
        let burst = [
            (0, true, 2),
            (20, false, 2),
            (60, false, 2),
            (140, false, 2),
            (300, false, 2),
        ];
        assert_eq!(sent[..5], burst);
        assert_eq!(sent[5..], [(1_300, true, 2), (2_300, true, 2), (3_300, true, 2)]);
        assert_eq!(
            state(call.report(&peer(1), &report(10), 10, after(start, 3_500))),
            Some(Outcome::Done)
        );
        assert!(!call.up(&peer(1)) && call.up(&peer(2)));
        let round = call.handle_timeout(after(start, 4_300)).expect("due");
        assert_eq!(round.to, [peer(2)]);
        assert_eq!(
            state(call.report(&peer(2), &report(10), 10, after(start, 3_500))),
            Some(Outcome::Done)
        );
        assert!(call.is_over() && call.poll_timeout().is_none());
    }

    #[test]
    fn the_burst_goes_on_for_nodes_that_the_station_does_not_know() {
        let start = start();
        let mut call = StopCall::new(10, [], start);
        let rounds = (0..3_000)
            .filter(|ms| call.handle_timeout(after(start, *ms)).is_some())
            .count();
        assert_eq!(rounds, BURST_MS.len());
    }

    #[test]
    fn an_answer_comes_in_parts() {
        let mut call = StopCall::new(10, [peer(1)], start());
        let running = Stopped {
            latched: false,
            command: StopCommand::Running,
            ..report(10)
        };
        assert_eq!(call.report(&peer(1), &running, 10, start()), Verdict::Stopped);
        assert_eq!(call.report(&peer(1), &running, 10, start()), Verdict::Nothing);
        assert_eq!(call.unanswered().count(), 0);
        assert_eq!(call.at_work().count(), 1);
        let unlatched = Stopped {
            command: StopCommand::Done,
            ..running.clone()
        };
        assert_eq!(call.report(&peer(1), &unlatched, 10, start()), Verdict::Nothing);
        let failed = Stopped {
            latched: true,
            command: StopCommand::Failed,
            error: Some("exit status 3".to_owned()),
            ..running
        };
        assert_eq!(
            state(call.report(&peer(1), &failed, 10, start())),
            Some(Outcome::Failed)
        );
        assert!(call.is_over());
        assert_eq!(call.report(&peer(1), &report(10), 10, start()), Verdict::Nothing);
    }

    #[test]
    fn a_node_that_restarts_before_it_has_written_the_order_down_is_told_again() {
        let start = start();
        let mut call = StopCall::new(10, [peer(1)], start);
        let unlatched = Stopped {
            latched: false,
            ..report(10)
        };
        while call.handle_timeout(after(start, 400)).is_some() {}
        assert_eq!(
            call.report(&peer(1), &unlatched, 10, after(start, 400)),
            Verdict::Stopped
        );
        assert!(call.up(&peer(1)));
        let restarted = Stopped {
            stopped: false,
            latched: false,
            ..report(0)
        };
        assert_eq!(
            call.report(&peer(1), &restarted, 10, after(start, 400)),
            Verdict::Nothing
        );
        let round = call.handle_timeout(after(start, 2_000)).expect("due");
        assert_eq!((round.to, round.links), (vec![peer(1)], true));
    }

    #[test]
    fn a_stop_that_is_not_on_disk_is_not_done() {
        let mut call = StopCall::new(10, [peer(1)], start());
        let unlatched = Stopped {
            latched: false,
            error: Some("no space".to_owned()),
            ..report(10)
        };
        assert_eq!(
            state(call.report(&peer(1), &unlatched, 10, start())),
            Some(Outcome::Failed)
        );
    }

    #[test]
    fn only_an_answer_to_this_order_counts() {
        let mut call = StopCall::new(10, [peer(1)], start());
        assert_eq!(call.report(&peer(1), &report(9), 10, start()), Verdict::Nothing);
        assert_eq!(call.report(&peer(2), &report(10), 10, start()), Verdict::Nothing);
        assert_eq!(
            call.report(&peer(1), &report(50), 10, start()),
            Verdict::CountOn(50)
        );
        call.give_anew(51, start());
        assert_eq!(call.report(&peer(1), &report(50), 51, start()), Verdict::Nothing);
        // A later order of this very station, given meanwhile.
        assert_eq!(
            state(call.report(&peer(1), &report(52), 52, start())),
            Some(Outcome::Done)
        );
    }

    #[test]
    fn no_node_makes_the_station_count_to_where_it_cannot_count_on() {
        let mut call = StopCall::new(10, [peer(1)], start());
        for seen in [u64::MAX, STOP_NUMBER_TOLD_MAX + 1] {
            assert_eq!(
                call.report(&peer(1), &report(seen), 10, start()),
                Verdict::Nothing
            );
        }
        assert_eq!(call.unanswered().count(), 1);
        let told = STOP_NUMBER_TOLD_MAX;
        assert_eq!(
            call.report(&peer(1), &report(told), 10, start()),
            Verdict::CountOn(told)
        );
        call.give_anew(told + 1, start());
        let answer = call.report(&peer(1), &report(told + 1), told + 1, start());
        assert_eq!(state(answer), Some(Outcome::Done));
    }

    #[test]
    fn a_node_that_always_tells_more_makes_the_station_give_anew_seldom_and_not_for_ever() {
        let start = start();
        let mut call = StopCall::new(10, [peer(1), peer(2)], start);
        let (mut given, mut anew) = (10, Vec::new());
        for ms in (0..60_000).step_by(10) {
            let now = after(start, ms);
            if let Verdict::CountOn(seen) = call.report(&peer(1), &report(given + 1), given, now) {
                given = seen + 1;
                call.give_anew(given, now);
                anew.push(ms);
            }
        }
        let each_second = (1..u64::from(ANEW_MAX)).map(|n| 10 + (n - 1) * 1_000);
        let expected: Vec<u64> = std::iter::once(0).chain(each_second).collect();
        assert_eq!(anew, expected);
        let honest = call.report(&peer(2), &report(given), given, after(start, 60_000));
        assert_eq!(state(honest), Some(Outcome::Done));
    }

    #[test]
    fn nodes_that_have_seen_different_numbers_are_stopped_by_the_third_order() {
        let begin = start();
        let mut call = StopCall::new(1, (1..=20).map(peer), begin);
        let mut given = 1;
        let later = begin + ANEW_INTERVAL;
        for now in [begin, later] {
            for n in 1..=20 {
                let seen = report((u64::from(n) * 100).max(given));
                if let Verdict::CountOn(seen) = call.report(&peer(n), &seen, given, now) {
                    given = seen + 1;
                    call.give_anew(given, now);
                }
            }
        }
        assert_eq!(given, 2_001);
        assert_eq!(call.unanswered().count(), 1, "only whoever made it count on");
        let answer = call.report(&peer(3), &report(given), given, later);
        assert_eq!(state(answer), Some(Outcome::Done));
        assert_eq!(call.unanswered().count(), 0);
    }

    #[test]
    fn a_node_that_was_released_meanwhile_is_not_done() {
        let mut call = StopCall::new(10, [peer(1)], start());
        let released = Stopped {
            stopped: false,
            latched: false,
            ..report(10)
        };
        let Verdict::Ended(reply) = call.report(&peer(1), &released, 10, start()) else {
            panic!("it has said all");
        };
        assert_eq!(reply.state, Outcome::Failed);
        assert_eq!(reply.error.as_deref(), Some("it was released meanwhile"));
    }

    #[test]
    fn a_node_that_is_not_meant_says_so() {
        let mut call = StopCall::new(10, [peer(1)], start());
        let not_meant = Stopped {
            stopped: false,
            number: 10,
            error: Some("it is called drone-08".to_owned()),
            not_meant: true,
            ..report(0)
        };
        assert_eq!(
            state(call.report(&peer(1), &not_meant, 10, start())),
            Some(Outcome::Refused)
        );
    }
}
