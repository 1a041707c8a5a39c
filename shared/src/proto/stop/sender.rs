//! The station's side of one stop: when to send it to which targets, and which have answered.
//!
//! | time | what is sent |
//! |---|---|
//! | at once | the order over the link of each linked target, and a datagram |
//! | [`BURST_MS`] | datagrams |
//! | every [`REPEAT_INTERVAL`] after them | a datagram, and the order over each link, while a target has not answered |
//! | the link of a target without a final answer opens | the order over it |
//!
//! It ends when every target has given its final answer, or when its owner gives up. An answer counts for the order
//! if the node has received a number of this station that is as high, and not higher than this station has issued. A
//! node that has received a higher number was stopped by a station with a newer store, and ignores lower numbers: the
//! order is issued again with a higher one. Every new order also stops again the nodes that are stopped already, so
//! it is reissued at most once a second and at most eight times: a faulty node that always reports a higher number
//! causes no more than that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::order::STOP_NUMBER_REPORTED_MAX;
use crate::proto::id::PeerId;
use crate::proto::message::{StopCommandState, StopStatus};
use crate::proto::outcome::{Outcome, Reply};

/// When datagrams are sent, in milliseconds since the stop: five, so that most nodes receive one where many are lost.
pub const BURST_MS: [u64; 5] = [0, 20, 60, 140, 300];
/// Time between two rounds for targets that have not answered.
pub const REPEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two reissues of one stop.
const REISSUE_INTERVAL: Duration = Duration::from_secs(1);
/// Reissues without that wait: with few nodes two are enough, and the third is numbered above all reports so far.
const IMMEDIATE_REISSUES: u8 = 2;
/// Most reissues of one stop.
const REISSUES_MAX: u8 = 8;

/// The result of a report.
#[derive(Clone, Debug, PartialEq)]
pub enum ReportResult {
    /// It changes nothing about this stop.
    Unchanged,
    /// The node is stopped, which it had not reported before; its final answer is to come.
    Stopped,
    /// The node has given its final answer.
    Ended(Reply),
    /// The node has received a higher number of this station than this station has issued: issue the order again,
    /// with a number above this one.
    RaiseNumber(u64),
}

/// A round of orders to send now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendRound {
    /// Targets that have not answered: the order is sent over their links, where they have one, and as datagrams to
    /// their last addresses.
    pub targets: Vec<PeerId>,
    /// Whether it is also sent over links; otherwise only datagrams are sent.
    pub over_links: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetState {
    Unanswered,
    Stopped,
    Ended,
}

/// One emergency stop; see the module.
#[derive(Debug)]
pub struct StopSender {
    /// The lowest number of its orders.
    number: u64,
    targets: BTreeMap<PeerId, TargetState>,
    start: Instant,
    /// Datagrams of the burst that were sent.
    burst_sent: usize,
    /// When the next round is due.
    next_round: Instant,
    /// Number of reissues, and when the next is allowed.
    reissues: u8,
    next_reissue: Instant,
    /// The highest number that a node has reported.
    reported_max: u64,
}

impl StopSender {
    /// A stop of these targets, by orders numbered `number` and higher.
    pub fn new(number: u64, targets: impl IntoIterator<Item = PeerId>, now: Instant) -> Self {
        Self {
            number,
            targets: targets
                .into_iter()
                .map(|id| (id, TargetState::Unanswered))
                .collect(),
            start: now,
            burst_sent: 0,
            next_round: now,
            reissues: 0,
            next_reissue: now,
            reported_max: 0,
        }
    }

    /// Issues the order again, numbered `number` and higher: it is sent to all targets without an answer, as at
    /// first.
    pub fn reissue(&mut self, number: u64, now: Instant) {
        (self.number, self.start, self.burst_sent, self.next_round) = (number, now, 0, now);
    }

    /// The targets that have not answered.
    pub fn unanswered(&self) -> impl Iterator<Item = PeerId> {
        self.targets_in(TargetState::Unanswered)
    }

    /// The targets that have answered, but not finally.
    pub fn running(&self) -> impl Iterator<Item = PeerId> {
        self.targets_in(TargetState::Stopped)
    }

    fn targets_in(&self, answer: TargetState) -> impl Iterator<Item = PeerId> {
        let those = self.targets.iter().filter(move |(_, have)| **have == answer);
        those.map(|(id, _)| *id)
    }

    /// Whether every target has given its final answer.
    pub fn is_finished(&self) -> bool {
        self.targets.values().all(|answer| *answer == TargetState::Ended)
    }

    /// Whether the burst of datagrams continues. It does so whatever the answers: the station may not know all nodes.
    fn is_bursting(&self) -> bool {
        self.burst_sent < BURST_MS.len()
    }

    /// When something is to be sent next; `None` if nothing is.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.is_bursting() || self.unanswered().next().is_some()).then_some(self.next_round)
    }

    /// The next round, if it is due.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<SendRound> {
        if now < self.poll_timeout()? {
            return None;
        }
        let round = SendRound {
            targets: self.unanswered().collect(),
            over_links: self.burst_sent == 0 || !self.is_bursting(),
        };
        self.burst_sent = (self.burst_sent + 1).min(BURST_MS.len());
        self.next_round = match BURST_MS.get(self.burst_sent) {
            // Counted from the start, so that one late datagram does not delay the others.
            Some(after) => now.max(self.start + Duration::from_millis(*after)),
            None => now + REPEAT_INTERVAL,
        };
        Some(round)
    }

    /// Whether the order is to be sent over the link of `peer`, which has just opened: unless its answer is final. A
    /// node that had stopped may have restarted before the order was in its journal, and then has lost it.
    pub fn should_send_to(&self, peer: &PeerId) -> bool {
        self.targets
            .get(peer)
            .is_some_and(|answer| *answer != TargetState::Ended)
    }

    /// Takes a node's report. `given` is the highest number that this station has issued.
    pub fn on_report(
        &mut self,
        peer: &PeerId,
        report: &StopStatus,
        highest_issued: u64,
        now: Instant,
    ) -> ReportResult {
        let Some(answer) = self.targets.get_mut(peer) else {
            return ReportResult::Unchanged;
        };
        if *answer == TargetState::Ended {
            return ReportResult::Unchanged;
        }
        if report.not_selected && report.number >= self.number && report.number <= highest_issued {
            *answer = TargetState::Ended;
            let error = report.error.clone();
            let error =
                error.unwrap_or_else(|| "the node reports that the selector does not match it".to_owned());
            return ReportResult::Ended(Reply::refused(error));
        }
        if report.seen < self.number {
            // The node restarted before the order was in its journal: the order is sent again.
            *answer = TargetState::Unanswered;
            return ReportResult::Unchanged;
        }
        if report.seen > highest_issued {
            if report.seen > STOP_NUMBER_REPORTED_MAX {
                // The report is not plausible, so nothing in it is used.
                return ReportResult::Unchanged;
            }
            self.reported_max = self.reported_max.max(report.seen);
            let immediate = self.reissues < IMMEDIATE_REISSUES;
            if self.reissues >= REISSUES_MAX || (!immediate && now < self.next_reissue) {
                // A higher number was reported already, and is reported again every second; the next order is
                // numbered above this one too.
                return ReportResult::Unchanged;
            }
            self.reissues += 1;
            self.next_reissue = now + REISSUE_INTERVAL;
            return ReportResult::RaiseNumber(self.reported_max);
        }
        if let Some(reply) = final_reply(report, self.number) {
            *answer = TargetState::Ended;
            return ReportResult::Ended(reply);
        }
        if *answer == TargetState::Stopped {
            return ReportResult::Unchanged;
        }
        *answer = TargetState::Stopped;
        ReportResult::Stopped
    }
}

/// The outcome for a node that has received order `number`; `None` while its command runs.
fn final_reply(report: &StopStatus, number: u64) -> Option<Reply> {
    let value = serde_json::json!({
        "stopped": report.stopped,
        "number": report.number,
        "latched": report.latched,
        "command": report.command,
    });
    if !report.stopped {
        // The operator must not take this node for stopped.
        let error = if report.proves_release(number) {
            "it was released meanwhile"
        } else {
            "it is NOT stopped: it has lost the stop, and no release is known"
        };
        return Some(Reply {
            value: Some(value),
            ..Reply::failed(error)
        });
    }
    if report.held {
        return Some(Reply {
            value: Some(value),
            ..Reply::failed(
                "it has lost its record of this stop: it is held, and its emergency_stop command does not run",
            )
        });
    }
    let done = Reply::done(value.clone());
    match (report.command, report.latched, &report.error) {
        (StopCommandState::Running, _, _)
        | (StopCommandState::None | StopCommandState::Done, false, None) => None,
        (StopCommandState::None | StopCommandState::Done, true, _) => Some(done),
        (StopCommandState::Failed, _, error)
        | (StopCommandState::None | StopCommandState::Done, false, error) => {
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

    fn report(seen: u64) -> StopStatus {
        StopStatus {
            stopped: true,
            issuer: peer(9),
            number: seen,
            latched: true,
            command: StopCommandState::None,
            error: None,
            since_ms: 0,
            seen,
            released: Some(0),
            held: false,
            not_selected: false,
        }
    }

    fn state(verdict: ReportResult) -> Option<Outcome> {
        match verdict {
            ReportResult::Ended(reply) => Some(reply.state),
            ReportResult::Unchanged | ReportResult::Stopped | ReportResult::RaiseNumber(_) => None,
        }
    }

    #[test]
    fn stop_burst_is_followed_by_one_round_each_second() {
        let start = start();
        let mut sender = StopSender::new(10, [peer(1), peer(2)], start);
        let mut sent = Vec::new();
        for ms in 0..3_500 {
            if let Some(round) = sender.handle_timeout(after(start, ms)) {
                sent.push((ms, round.over_links, round.targets.len()));
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
            state(sender.on_report(&peer(1), &report(10), 10, after(start, 3_500))),
            Some(Outcome::Done)
        );
        assert!(!sender.should_send_to(&peer(1)) && sender.should_send_to(&peer(2)));
        let round = sender.handle_timeout(after(start, 4_300)).expect("due");
        assert_eq!(round.targets, [peer(2)]);
        assert_eq!(
            state(sender.on_report(&peer(2), &report(10), 10, after(start, 3_500))),
            Some(Outcome::Done)
        );
        assert!(sender.is_finished() && sender.poll_timeout().is_none());
    }

    #[test]
    fn stop_burst_completes_without_known_targets() {
        let start = start();
        let mut call = StopSender::new(10, [], start);
        let rounds = (0..3_000)
            .filter(|ms| call.handle_timeout(after(start, *ms)).is_some())
            .count();
        assert_eq!(rounds, BURST_MS.len());
    }

    #[test]
    fn stop_report_may_come_in_parts() {
        let mut call = StopSender::new(10, [peer(1)], start());
        let running = StopStatus {
            latched: false,
            command: StopCommandState::Running,
            ..report(10)
        };
        assert_eq!(
            call.on_report(&peer(1), &running, 10, start()),
            ReportResult::Stopped
        );
        assert_eq!(
            call.on_report(&peer(1), &running, 10, start()),
            ReportResult::Unchanged
        );
        assert_eq!(call.unanswered().count(), 0);
        assert_eq!(call.running().count(), 1);
        let unlatched = StopStatus {
            command: StopCommandState::Done,
            ..running.clone()
        };
        assert_eq!(
            call.on_report(&peer(1), &unlatched, 10, start()),
            ReportResult::Unchanged
        );
        let failed = StopStatus {
            latched: true,
            command: StopCommandState::Failed,
            error: Some("exit status 3".to_owned()),
            ..running
        };
        assert_eq!(
            state(call.on_report(&peer(1), &failed, 10, start())),
            Some(Outcome::Failed)
        );
        assert!(call.is_finished());
        assert_eq!(
            call.on_report(&peer(1), &report(10), 10, start()),
            ReportResult::Unchanged
        );
    }

    #[test]
    fn node_restarted_before_latching_is_sent_the_stop_again() {
        let start = start();
        let mut call = StopSender::new(10, [peer(1)], start);
        let unlatched = StopStatus {
            latched: false,
            ..report(10)
        };
        while call.handle_timeout(after(start, 400)).is_some() {}
        assert_eq!(
            call.on_report(&peer(1), &unlatched, 10, after(start, 400)),
            ReportResult::Stopped
        );
        assert!(call.should_send_to(&peer(1)));
        let restarted = StopStatus {
            stopped: false,
            latched: false,
            ..report(0)
        };
        assert_eq!(
            call.on_report(&peer(1), &restarted, 10, after(start, 400)),
            ReportResult::Unchanged
        );
        let round = call.handle_timeout(after(start, 2_000)).expect("due");
        assert_eq!((round.targets, round.over_links), (vec![peer(1)], true));
    }

    #[test]
    fn unlatched_stop_is_not_done() {
        let mut call = StopSender::new(10, [peer(1)], start());
        let unlatched = StopStatus {
            latched: false,
            error: Some("no space".to_owned()),
            ..report(10)
        };
        assert_eq!(
            state(call.on_report(&peer(1), &unlatched, 10, start())),
            Some(Outcome::Failed)
        );
    }

    #[test]
    fn report_of_another_stop_is_ignored() {
        let mut call = StopSender::new(10, [peer(1)], start());
        assert_eq!(
            call.on_report(&peer(1), &report(9), 10, start()),
            ReportResult::Unchanged
        );
        assert_eq!(
            call.on_report(&peer(2), &report(10), 10, start()),
            ReportResult::Unchanged
        );
        assert_eq!(
            call.on_report(&peer(1), &report(50), 10, start()),
            ReportResult::RaiseNumber(50)
        );
        call.reissue(51, start());
        assert_eq!(
            call.on_report(&peer(1), &report(50), 51, start()),
            ReportResult::Unchanged
        );
        // A later order of this station, issued meanwhile.
        assert_eq!(
            state(call.on_report(&peer(1), &report(52), 52, start())),
            Some(Outcome::Done)
        );
    }

    #[test]
    fn reported_stop_numbers_above_the_cap_are_ignored() {
        let mut call = StopSender::new(10, [peer(1)], start());
        for seen in [u64::MAX, STOP_NUMBER_REPORTED_MAX + 1] {
            assert_eq!(
                call.on_report(&peer(1), &report(seen), 10, start()),
                ReportResult::Unchanged
            );
        }
        assert_eq!(call.unanswered().count(), 1);
        let reported = STOP_NUMBER_REPORTED_MAX;
        assert_eq!(
            call.on_report(&peer(1), &report(reported), 10, start()),
            ReportResult::RaiseNumber(reported)
        );
        call.reissue(reported + 1, start());
        let answer = call.on_report(&peer(1), &report(reported + 1), reported + 1, start());
        assert_eq!(state(answer), Some(Outcome::Done));
    }

    #[test]
    fn stop_reissues_are_limited_in_rate_and_count() {
        let start = start();
        let mut call = StopSender::new(10, [peer(1), peer(2)], start);
        let (mut issued, mut anew) = (10, Vec::new());
        for ms in (0..60_000).step_by(10) {
            let now = after(start, ms);
            if let ReportResult::RaiseNumber(seen) =
                call.on_report(&peer(1), &report(issued + 1), issued, now)
            {
                issued = seen + 1;
                call.reissue(issued, now);
                anew.push(ms);
            }
        }
        let each_second = (1..u64::from(REISSUES_MAX)).map(|n| 10 + (n - 1) * 1_000);
        let expected: Vec<u64> = std::iter::once(0).chain(each_second).collect();
        assert_eq!(anew, expected);
        let honest = call.on_report(&peer(2), &report(issued), issued, after(start, 60_000));
        assert_eq!(state(honest), Some(Outcome::Done));
    }

    #[test]
    fn third_reissue_stops_nodes_with_different_numbers() {
        let begin = start();
        let mut call = StopSender::new(1, (1..=20).map(peer), begin);
        let mut issued = 1;
        let later = begin + REISSUE_INTERVAL;
        for now in [begin, later] {
            for n in 1..=20 {
                let seen = report((u64::from(n) * 100).max(issued));
                if let ReportResult::RaiseNumber(seen) = call.on_report(&peer(n), &seen, issued, now) {
                    issued = seen + 1;
                    call.reissue(issued, now);
                }
            }
        }
        assert_eq!(issued, 2_001);
        assert_eq!(
            call.unanswered().count(),
            1,
            "only the node that made it raise the number"
        );
        let answer = call.on_report(&peer(3), &report(issued), issued, later);
        assert_eq!(state(answer), Some(Outcome::Done));
        assert_eq!(call.unanswered().count(), 0);
    }

    #[test]
    fn node_released_meanwhile_is_reported_failed() {
        let mut call = StopSender::new(10, [peer(1)], start());
        let released = StopStatus {
            stopped: false,
            released: Some(10),
            latched: false,
            ..report(10)
        };
        let ReportResult::Ended(reply) = call.on_report(&peer(1), &released, 10, start()) else {
            panic!("the release ends the delivery");
        };
        assert_eq!(reply.state, Outcome::Failed);
        assert_eq!(reply.error.as_deref(), Some("it was released meanwhile"));
    }

    #[test]
    fn unselected_node_is_reported_refused() {
        let mut call = StopSender::new(10, [peer(1)], start());
        let not_meant = StopStatus {
            stopped: false,
            number: 10,
            error: Some("it is called drone-08".to_owned()),
            not_selected: true,
            ..report(0)
        };
        assert_eq!(
            state(call.on_report(&peer(1), &not_meant, 10, start())),
            Some(Outcome::Refused)
        );
    }
}
