//! A drone's emergency stop: it is sent first, drops actions, and outlives connections and tickets.

use bytes::Bytes;
use swarm_shared::net::clock;
use swarm_shared::proto::foreign::clever_show::server::{Completion, Event};

use super::{SECOND, deadlines, drone, events, names, no_arguments, ready_drone, write_all};

#[test]
fn stop_goes_first_drops_actions_and_is_resent() {
    let now = clock::now();
    let mut drone = ready_drone(true, true, now);
    drone.send_action(1, "takeoff", no_arguments(), now + SECOND, now);
    drone.send_file(2, "/x", Bytes::new(), now + SECOND, now);
    drone.send_request(3, "time", no_arguments(), deadlines(now), now);
    drone.stop(4, "emergency_land", now + SECOND);
    assert!(drone.is_stopped());
    assert_eq!(names(&write_all(&mut drone, now)), ["emergency_land", "time"]);
    let events_seen = events(&mut drone);
    for ticket in [1, 2] {
        assert!(
            events_seen.contains(&Event::Completed(
                ticket,
                Completion::Refused("dropped by an emergency stop")
            )),
            "{events_seen:?}"
        );
    }
    assert!(events_seen.contains(&Event::Completed(4, Completion::Sent)));
    drone.send_action(5, "takeoff", no_arguments(), now + SECOND, now);
    assert!(matches!(
        events(&mut drone).as_slice(),
        [Event::Completed(5, Completion::Refused(_))]
    ));
    // The stop is sent first over each new connection.
    drone.on_disconnected(now);
    drone.on_connected(now);
    assert_eq!(names(&write_all(&mut drone, now)), ["emergency_land", "time"]);
    // A disconnected drone gets the stop when it is back, even if its ticket has expired.
    drone.on_disconnected(now);
    drone.stop(6, "emergency_land", now + SECOND);
    drone.handle_timeout(now + SECOND);
    let events_seen = events(&mut drone);
    assert!(
        matches!(events_seen.as_slice(), [Event::Completed(6, Completion::NoAnswer(why))] if why.contains("when the drone is back")),
        "{events_seen:?}"
    );
    drone.on_connected(now + SECOND);
    assert_eq!(
        names(&write_all(&mut drone, now + SECOND)),
        ["emergency_land", "time"]
    );
    assert!(drone.release() && !drone.release());
    drone.send_action(7, "led", no_arguments(), now + 5 * SECOND, now + SECOND);
    assert_eq!(names(&write_all(&mut drone, now + SECOND)), ["led"]);
}

#[test]
fn action_half_written_at_a_stop_is_not_resent() {
    let dropped = Completion::Refused("dropped by an emergency stop");
    for release in [false, true] {
        let now = clock::now();
        let mut drone = ready_drone(true, true, now);
        drone.send_action(1, "takeoff", no_arguments(), now + SECOND, now);
        assert!(drone.next_frame(now).is_some(), "the frame is half written");
        drone.stop(2, "emergency_land", now + SECOND);
        if release {
            drone.release();
        }
        drone.on_disconnected(now);
        assert_eq!(events(&mut drone), [Event::Completed(1, dropped.clone())]);
        drone.on_connected(now);
        assert_eq!(names(&write_all(&mut drone, now)), ["emergency_land"]);
        assert_eq!(events(&mut drone), [Event::Completed(2, Completion::Sent)]);
    }
    // An action that was written as a whole after all is reported as sent.
    let now = clock::now();
    let mut drone = ready_drone(true, true, now);
    drone.send_action(1, "takeoff", no_arguments(), now + SECOND, now);
    assert!(drone.next_frame(now).is_some());
    drone.stop(2, "emergency_land", now + SECOND);
    drone.on_written();
    assert_eq!(events(&mut drone), [Event::Completed(1, Completion::Sent)]);
}

#[test]
fn stop_is_sent_although_cancelled_or_expired() {
    for (late, lost) in [(false, false), (true, false), (false, true), (true, true)] {
        let now = clock::now();
        let mut drone = ready_drone(true, true, now);
        drone.send_file(1, "/x", Bytes::new(), now + SECOND, now);
        assert!(drone.next_frame(now).is_some(), "a file is half written");
        // One frame serves two tickets.
        for ticket in [2, 3] {
            drone.stop(ticket, "emergency_land", now + SECOND);
        }
        if late {
            drone.handle_timeout(now + SECOND);
            let events_seen = events(&mut drone);
            assert!(
                matches!(
                    events_seen.as_slice(),
                    [Event::Completed(2, Completion::NoAnswer(why)), Event::Completed(3, Completion::NoAnswer(_))]
                        if why.contains("not sent yet")
                ),
                "connected, and not sent: {events_seen:?}"
            );
        } else {
            drone.cancel(2);
            drone.cancel(3);
        }
        let now = now + 2 * SECOND;
        drone.on_written();
        if lost {
            assert!(drone.next_frame(now).is_some(), "the stop is half written");
            drone.on_disconnected(now);
            drone.on_connected(now);
        }
        assert_eq!(names(&write_all(&mut drone, now)), ["emergency_land"]);
        assert_eq!(events(&mut drone), [Event::Completed(1, Completion::Sent)]);
    }
    // It is not sent after its release, queued or half written.
    for half in [false, true] {
        let now = clock::now();
        let mut drone = ready_drone(true, true, now);
        drone.send_request(1, "time", no_arguments(), deadlines(now), now);
        assert!(drone.next_frame(now).is_some());
        drone.stop(2, "emergency_land", now + SECOND);
        if half {
            drone.on_written();
            assert!(drone.next_frame(now).is_some(), "the stop is half written");
        }
        drone.cancel(2);
        drone.release();
        drone.on_disconnected(now);
        drone.on_connected(now);
        assert_eq!(names(&write_all(&mut drone, now)), ["time"]);
    }
}

#[test]
fn queued_stop_precedes_resent_requests() {
    let now = clock::now();
    let mut drone = drone(true, true);
    drone.on_connected(now);
    drone.send_request(1, "time", no_arguments(), deadlines(now), now);
    assert_eq!(names(&write_all(&mut drone, now)), ["clover_dir", "time"]);
    drone.send_request(2, "position", no_arguments(), deadlines(now), now);
    assert!(drone.next_frame(now).is_some(), "the frame is half written");
    drone.stop(3, "emergency_land", now + SECOND);
    drone.on_disconnected(now);
    drone.on_connected(now);
    assert_eq!(
        names(&write_all(&mut drone, now)),
        ["emergency_land", "clover_dir", "time", "position"]
    );
}
