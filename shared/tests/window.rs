//! The window of files on a model link: a queue in front of a narrow place, and a way that takes its time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::window::{Acknowledged, CHUNK_BYTES_LEAST, QUEUE_TARGET, Window};

const LEAST: usize = 32 * 1024;
const MOST: usize = 2 * 1024 * 1024;
/// 20 Mbit/s, in bytes a second.
const NARROW: u64 = 2_500_000;
const MBIT: u64 = 125_000;

struct Sent {
    bytes: usize,
    at: Duration,
    acknowledged_at: Duration,
    alone: bool,
}

/// A sender that always has something to send, and the link.
struct Model {
    window: Window,
    start: Instant,
    now: Duration,
    /// Bytes a second.
    rate: u64,
    /// There and back, without the queue.
    way: Duration,
    /// When the narrow place is free again.
    free_at: Duration,
    sent: VecDeque<Sent>,
    on_the_way: usize,
    carried: usize,
    /// The longest time that a frame of somebody else's would have waited.
    longest_queue: Duration,
}

impl Model {
    fn new(rate: u64, way: Duration) -> Self {
        Self {
            window: Window::new(LEAST, MOST),
            start: clock::now(),
            now: Duration::ZERO,
            rate,
            way,
            free_at: Duration::ZERO,
            sent: VecDeque::new(),
            on_the_way: 0,
            carried: 0,
            longest_queue: Duration::ZERO,
        }
    }

    /// Sends for so long; returns how much of the link was used, in percent.
    fn run(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        (self.carried, self.longest_queue) = (0, Duration::ZERO);
        while self.now < end {
            while self.sent.is_empty() || self.on_the_way < self.window.bytes() {
                self.send();
            }
            self.acknowledge();
        }
        let could = u128::from(self.rate) * time.as_millis() / 1_000;
        usize::try_from(self.carried as u128 * 100 / could).expect("a percentage")
    }

    fn send(&mut self) {
        let bytes = self.window.chunk_bytes();
        let takes = Duration::from_nanos(bytes as u64 * 1_000_000_000 / self.rate);
        self.free_at = self.free_at.max(self.now) + takes;
        self.longest_queue = self.longest_queue.max(self.free_at - self.now);
        self.sent.push_back(Sent {
            bytes,
            at: self.now,
            acknowledged_at: self.free_at + self.way,
            alone: self.sent.is_empty(),
        });
        self.on_the_way += bytes;
    }

    fn acknowledge(&mut self) {
        let sent = self.sent.pop_front().expect("something is on its way");
        self.now = sent.acknowledged_at;
        let what = Acknowledged {
            before: self.on_the_way,
            bytes: sent.bytes,
            delay: self.now - sent.at,
            alone: sent.alone,
        };
        self.on_the_way -= sent.bytes;
        self.carried += sent.bytes;
        self.window.acknowledged(what, self.start + self.now);
    }
}

#[test]
fn a_narrow_link_is_used_and_its_queue_stays_short() {
    for mbit in [10, 20, 50, 100] {
        for way_ms in [1, 5, 20] {
            let mut model = Model::new(mbit * MBIT, Duration::from_millis(way_ms));
            let case = format!("{mbit} Mbit/s, {way_ms} ms");
            let ramp = model.run(Duration::from_secs(2));
            let queue = model.longest_queue;
            // A frame that goes out waits for its own length too.
            let frame = Duration::from_nanos(CHUNK_BYTES_LEAST as u64 * 1_000_000_000 / (mbit * MBIT));
            assert!(queue <= QUEUE_TARGET * 4, "{case}: {queue:?} to begin with");
            assert!(ramp >= 80, "{case}: {ramp} % to begin with");
            let used = model.run(Duration::from_secs(60));
            let queue = model.longest_queue;
            assert!(used >= 90, "{case}: {used} %");
            assert!(queue <= QUEUE_TARGET * 5 / 2 + frame, "{case}: {queue:?}");
        }
    }
}

#[test]
fn a_wide_link_gets_the_whole_window_at_once() {
    let mut model = Model::new(700 * 1024 * 1024, Duration::from_micros(500));
    model.run(Duration::from_millis(50));
    assert_eq!(model.window.bytes(), MOST);
    assert!(model.run(Duration::from_secs(30)) >= 95);
}

#[test]
fn a_link_that_becomes_narrow_or_longer_is_followed() {
    let mut model = Model::new(200 * MBIT, Duration::from_millis(2));
    model.run(Duration::from_secs(5));
    model.rate = NARROW;
    model.run(Duration::from_secs(3));
    model.run(Duration::from_secs(20));
    assert!(
        model.longest_queue <= QUEUE_TARGET * 5 / 2,
        "{:?}",
        model.longest_queue
    );
    // Farther away: until the next look at the empty link that is taken for queue.
    model.way = Duration::from_millis(60);
    model.run(Duration::from_secs(15));
    assert!(model.run(Duration::from_secs(30)) >= 75);
    model.rate = 200 * MBIT;
    model.run(Duration::from_secs(2));
    assert!(model.run(Duration::from_secs(20)) >= 60);
}

#[test]
fn what_did_not_fill_the_window_does_not_enlarge_it() {
    let mut window = Window::new(LEAST, MOST);
    let now = clock::now();
    for _ in 0..100 {
        let what = Acknowledged {
            before: LEAST / 4,
            bytes: LEAST / 4,
            delay: Duration::from_millis(1),
            alone: true,
        };
        window.acknowledged(what, now);
    }
    assert_eq!(window.bytes(), LEAST);
}

#[test]
fn a_window_that_may_not_change_does_not() {
    let mut window = Window::new(MOST, MOST);
    for ms in [1, 1_000, 60_000] {
        let what = Acknowledged {
            before: MOST,
            bytes: MOST,
            delay: Duration::from_millis(ms),
            alone: true,
        };
        window.acknowledged(what, clock::now() + Duration::from_millis(ms));
        assert_eq!(window.bytes(), MOST);
    }
}
