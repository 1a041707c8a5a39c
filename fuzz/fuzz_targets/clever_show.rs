//! Frames and announcements from clever-show programs. Messages and announcements round-trip, and every command to a
//! drone ends exactly once.
#![no_main]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use swarm_shared::proto::foreign::clever_show::server::{
    CLOVER_DIR_BYTES_MAX, Deadlines, Drone, DroneOptions, Event, READING_BYTES_MAX, READINGS_MAX,
    parse_id_response,
};
use swarm_shared::proto::foreign::clever_show::{
    ANNOUNCEMENT_BYTES_MAX, Announcement, ID_BYTES_MAX, Message,
};
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::wire::{Frame, FrameLimits, FrameReader};

fn check_message(frame: &Frame) {
    if let Some(Ok(id)) = parse_id_response(frame) {
        assert!((1..=ID_BYTES_MAX).contains(&id.len()));
    }
    let Ok(message) = Message::from_frame(frame) else {
        return;
    };
    let encoded = message.to_frame();
    assert_ne!(
        encoded.content, "null",
        "the real peer never finishes reading `null`"
    );
    let mut bytes = BytesMut::new();
    // Escapes may make a header longer than its cap.
    if encoded.encode(&mut bytes).is_ok() {
        let again = FrameReader::new(FrameLimits::BULK)
            .next_frame(&mut bytes)
            .expect("valid");
        assert_eq!(Message::from_frame(&again.expect("whole")).as_ref(), Ok(&message));
    }
}

struct Server {
    drone: Drone,
    open: BTreeSet<u64>,
    last: u64,
}

impl Server {
    fn send_commands(&mut self, now: Instant) {
        let deadlines = Deadlines {
            start_by: now + Duration::from_secs(1),
            respond_by: now + Duration::from_secs(2),
        };
        for kind in 0..4 {
            self.last += 1;
            self.open.insert(self.last);
            match kind {
                0 => self
                    .drone
                    .send_request(self.last, "time", Arguments::default(), deadlines, now),
                1 => self.drone.request_file(self.last, "/y", deadlines, now),
                2 => self
                    .drone
                    .send_action(self.last, "led", Arguments::default(), deadlines.start_by, now),
                _ => self
                    .drone
                    .send_file(self.last, "/x", Default::default(), deadlines.start_by, now),
            }
        }
        self.check_events();
    }

    fn write(&mut self, now: Instant) {
        while let Some(frame) = self.drone.next_frame(now) {
            check_message(&frame);
            self.drone.on_written();
        }
        self.check_events();
    }

    fn check_events(&mut self) {
        while let Some(event) = self.drone.poll_event() {
            if let Event::Completed(ticket, _) = event {
                assert!(self.open.remove(&ticket), "each ticket ends once");
            }
        }
        assert!(self.drone.readings().len() <= READINGS_MAX);
        let dir = self.drone.clover_dir();
        assert!(dir.is_none_or(|dir| dir.len() <= CLOVER_DIR_BYTES_MAX));
        for value in self.drone.readings().values() {
            assert!(value.to_string().len() <= READING_BYTES_MAX);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(announcement) = Announcement::parse(data) {
        assert!(data.len() <= ANNOUNCEMENT_BYTES_MAX && announcement.port > 0);
        if let Ok(datagram) = announcement.to_datagram() {
            assert_eq!(Announcement::parse(&datagram), Ok(announcement));
        }
    }
    let Some((step, stream)) = data.split_first() else {
        return;
    };
    #[allow(clippy::disallowed_methods)]
    let mut now = Instant::now();
    let mut server = Server {
        drone: Drone::new(
            "clever-1".to_owned(),
            DroneOptions {
                resume_queue: step & 1 == 1,
                resend_requests: step & 2 == 2,
                idle_timeout: Duration::from_secs(60),
            },
        ),
        open: BTreeSet::new(),
        last: 0,
    };
    server.drone.on_connected(now);
    server.send_commands(now);
    let mut reader = FrameReader::new(FrameLimits::CONTROL);
    let mut inbox = BytesMut::from(stream);
    while let Ok(Some(frame)) = reader.next_frame(&mut inbox) {
        check_message(&frame);
        server.write(now);
        server.drone.handle_frame(&frame, now);
        server.check_events();
        now += Duration::from_millis(u64::from(*step) * 8);
        server.drone.handle_timeout(now);
        server.check_events();
        assert!(server.drone.poll_timeout().is_none_or(|due| due > now));
        if step & 4 == 4 {
            server.drone.on_disconnected(now);
            server.drone.on_connected(now);
        }
        if step & 8 == 8 {
            server.send_commands(now);
        }
    }
    server.drone.close("the end");
    server.check_events();
    assert!(server.open.is_empty(), "every command ends");
});
