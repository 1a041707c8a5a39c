//! The window of files on a model link: a queue in front of a bottleneck, and a propagation delay.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::session::window::{Acknowledged, QUEUE_DELAY_TARGET, SENT_CHUNK_BYTES_MIN, Window};

const WINDOW_MIN: usize = 32 * 1024;
const WINDOW_MAX: usize = 2 * 1024 * 1024;
/// 20 Mbit/s, in bytes a second.
const SLOW_RATE: u64 = 2_500_000;
const MBIT: u64 = 125_000;

struct Sent {
    bytes: usize,
    at: Duration,
    acknowledged_at: Duration,
    alone: bool,
}

/// A sender that always has data, and the link.
struct Model {
    window: Window,
    start: Instant,
    now: Duration,
    /// Bytes a second.
    rate: u64,
    /// Round-trip time without the queue.
    round_trip: Duration,
    /// When the bottleneck is free again.
    free_at: Duration,
    sent: VecDeque<Sent>,
    in_flight: usize,
    carried: usize,
    /// The longest time that another frame would have waited.
    longest_queue: Duration,
}

impl Model {
    fn new(rate: u64, way: Duration) -> Self {
        Self {
            window: Window::new(WINDOW_MIN, WINDOW_MAX),
            start: clock::now(),
            now: Duration::ZERO,
            rate,
            round_trip: way,
            free_at: Duration::ZERO,
            sent: VecDeque::new(),
            in_flight: 0,
            carried: 0,
            longest_queue: Duration::ZERO,
        }
    }

    /// Sends for this time; returns how much of the link was used, in percent.
    fn run(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        (self.carried, self.longest_queue) = (0, Duration::ZERO);
        while self.now < end {
            while self.sent.is_empty() || self.in_flight < self.window.bytes() {
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
            acknowledged_at: self.free_at + self.round_trip,
            alone: self.sent.is_empty(),
        });
        self.in_flight += bytes;
    }

    fn acknowledge(&mut self) {
        let sent = self.sent.pop_front().expect("something is on its way");
        self.now = sent.acknowledged_at;
        let what = Acknowledged {
            in_flight_before: self.in_flight,
            bytes: sent.bytes,
            delay: self.now - sent.at,
            only_in_flight: sent.alone,
        };
        self.in_flight -= sent.bytes;
        self.carried += sent.bytes;
        self.window.on_acknowledged(what, self.start + self.now);
    }
}

#[test]
fn slow_link_is_saturated_with_a_short_queue() {
    for mbit in [10, 20, 50, 100] {
        for way_ms in [1, 5, 20] {
            let mut model = Model::new(mbit * MBIT, Duration::from_millis(way_ms));
            let case = format!("{mbit} Mbit/s, {way_ms} ms");
            let ramp = model.run(Duration::from_secs(2));
            let queue = model.longest_queue;
            // A frame also waits for its own transmission.
            let frame = Duration::from_nanos(SENT_CHUNK_BYTES_MIN as u64 * 1_000_000_000 / (mbit * MBIT));
            assert!(queue <= QUEUE_DELAY_TARGET * 4, "{case}: {queue:?} to begin with");
            assert!(ramp >= 80, "{case}: {ramp} % to begin with");
            let used = model.run(Duration::from_secs(60));
            let queue = model.longest_queue;
            assert!(used >= 90, "{case}: {used} %");
            assert!(queue <= QUEUE_DELAY_TARGET * 5 / 2 + frame, "{case}: {queue:?}");
        }
    }
}

#[test]
fn fast_link_gets_the_whole_window_at_once() {
    let mut model = Model::new(700 * 1024 * 1024, Duration::from_micros(500));
    model.run(Duration::from_millis(50));
    assert_eq!(model.window.bytes(), WINDOW_MAX);
    assert!(model.run(Duration::from_secs(30)) >= 95);
}

#[test]
fn window_follows_changes_of_rate_and_delay() {
    let mut model = Model::new(200 * MBIT, Duration::from_millis(2));
    model.run(Duration::from_secs(5));
    model.rate = SLOW_RATE;
    model.run(Duration::from_secs(3));
    model.run(Duration::from_secs(20));
    assert!(
        model.longest_queue <= QUEUE_DELAY_TARGET * 5 / 2,
        "{:?}",
        model.longest_queue
    );
    // A longer distance: until the next measurement of the empty link it counts as queueing.
    model.round_trip = Duration::from_millis(60);
    model.run(Duration::from_secs(15));
    assert!(model.run(Duration::from_secs(30)) >= 75);
    model.rate = 200 * MBIT;
    model.run(Duration::from_secs(2));
    assert!(model.run(Duration::from_secs(20)) >= 60);
}

#[test]
fn unfilled_window_does_not_grow() {
    let mut window = Window::new(WINDOW_MIN, WINDOW_MAX);
    let now = clock::now();
    for _ in 0..100 {
        let what = Acknowledged {
            in_flight_before: WINDOW_MIN / 4,
            bytes: WINDOW_MIN / 4,
            delay: Duration::from_millis(1),
            only_in_flight: true,
        };
        window.on_acknowledged(what, now);
    }
    assert_eq!(window.bytes(), WINDOW_MIN);
}

#[test]
fn fixed_window_does_not_change() {
    let mut window = Window::new(WINDOW_MAX, WINDOW_MAX);
    for ms in [1, 1_000, 60_000] {
        let what = Acknowledged {
            in_flight_before: WINDOW_MAX,
            bytes: WINDOW_MAX,
            delay: Duration::from_millis(ms),
            only_in_flight: true,
        };
        window.on_acknowledged(what, clock::now() + Duration::from_millis(ms));
        assert_eq!(window.bytes(), WINDOW_MAX);
    }
}
