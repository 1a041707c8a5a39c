//! Who has a seat, and what is asked of it.

mod past;
mod pushes;

use std::collections::BTreeMap;
use std::time::Duration;

use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::wire::Lane;

use super::*;
use crate::fleet::engine::NO_NODES;
use crate::fleet::{
    ActRequest, Batch, BatchSize, Event, Failure, FileToSend, FilesToSend, Fleet, HistoryDelivery,
    HistoryQuery, HistoryState, NodesRequest, Request,
};
use crate::store::{Store, history};

fn profile(number: usize) -> Profile {
    let name = format!("d{number}");
    Profile {
        node: NodeRef {
            node: guest_name(&name),
            id: guest_id("test", &name),
        },
        tags: BTreeMap::new(),
        software: None,
        reads: Arc::default(),
        file_bytes_max: u64::from(files::IN_MEMORY_MAX),
    }
}

#[test]
fn watchers_are_not_woken_for_each_word_of_a_guest() {
    let guests = Guests::default();
    let seat = guests.seat(profile(1)).expect("free");
    let start = clock::now();
    let here = |seconds, battery: u8| Presence {
        online: true,
        heard: Some(start + Duration::from_secs(seconds)),
        telemetry: BTreeMap::from([("battery".to_owned(), battery.into())]),
        ..Presence::default()
    };
    let mut changes = guests.changes();
    let mut woken = |presence| {
        seat.tell(presence);
        let changed = changes.has_changed().expect("kept");
        changes.mark_unchanged();
        changed
    };
    assert!(woken(here(1, 80)));
    assert!(!woken(here(2, 80)));
    assert!(woken(here(3, 79)));
    assert!(!woken(here(4, 79)));
    let heard = guests.book().guests[&profile(1).node.id].presence.heard;
    assert_eq!(
        heard,
        Some(start + Duration::from_secs(4)),
        "whoever asks is told when"
    );
}

#[test]
fn whoever_is_gone_longest_loses_its_seat_when_all_are_taken() {
    let guests = Guests::default();
    let seat = |number| guests.seat(profile(number));
    let mut seats: Vec<Seat> = (0..GUESTS_MAX)
        .map(|number| seat(number).expect("free"))
        .collect();
    assert_eq!(
        seat(GUESTS_MAX).err(),
        Some(NoSeat::Full),
        "none has told anything"
    );
    let start = clock::now();
    let tell = |seat: &Seat, online, kept, second| {
        seat.tell(Presence {
            online,
            kept,
            heard: Some(start + Duration::from_secs(second)),
            ..Presence::default()
        });
    };
    tell(&seats[0], true, false, 0);
    tell(&seats[1], false, true, 1);
    assert_eq!(
        seat(GUESTS_MAX).err(),
        Some(NoSeat::Full),
        "one is here, one is waited for"
    );
    tell(&seats[2], false, false, 3);
    tell(&seats[3], false, false, 2);
    let _new = seat(GUESTS_MAX).expect("of the one that is gone longest");
    let ended = |seat: &mut Seat| {
        matches!(
            seat.orders.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        ) && matches!(
            seat.stops.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        )
    };
    let forgotten: Vec<usize> = (0..GUESTS_MAX)
        .filter(|number| ended(&mut seats[*number]))
        .collect();
    assert_eq!((forgotten, guests.len()), (vec![3], GUESTS_MAX));
    let lost = |number: &usize| seats[*number].is_lost();
    assert_eq!((0..GUESTS_MAX).filter(lost).collect::<Vec<_>>(), [3]);
    // It is back before its old seat is dropped, which then says nothing about it.
    let back = seat(3).expect("of the next one");
    assert!(seats[3].is_lost() && !back.is_lost(), "the old one stays lost");
    tell(&seats[3], true, false, 9);
    assert_eq!(guests.meant(&Selector::parse("d3").expect("a name")).len(), 1);
    assert!(!guests.book().guests[&profile(3).node.id].presence.online);
    drop(seats);
    assert_eq!(guests.len(), 2, "those that were seated last");
}

#[tokio::test]
async fn what_is_asked_counts_from_when_it_was_asked_and_a_question_does_not_wait_to_go_out() {
    let guests = Guests::default();
    let mut seat = guests.seat(profile(1)).expect("free");
    let meant = guests.meant(&Selector::parse("d1").expect("a name"));
    let started = clock::now()
        .checked_sub(Duration::from_secs(5))
        .expect("the machine has been up");
    let terms = work::Terms {
        started,
        begin: Duration::from_secs(30),
        answer: Duration::from_millis(50),
        room: Duration::from_secs(30),
        patience: Some(Duration::from_millis(50)),
        batch: None,
    };
    let question = Work::Command {
        action: "anim_id".to_owned(),
        arguments: Arguments::default(),
    };
    let jobs = meant
        .into_iter()
        .map(|guest| jobs::job(guest, 0, Ok(question.clone())));
    let (events, mut told) = mpsc::channel(8);
    let asking = tokio::spawn(work::run(jobs.collect(), terms, None, events));
    let order = seat.orders.recv().await.expect("ordered");
    assert_eq!(
        (order.issued, order.begin),
        (started, started + Duration::from_secs(30))
    );
    let Some(crate::fleet::Event::Delivery(delivery)) = told.recv().await else {
        panic!("no end")
    };
    let error = delivery.error.expect("why");
    assert!(
        !error.contains("go out") && error.contains("no answer"),
        "{error}"
    );
    asking.await.expect("over");
}

/// A desk before an engine that knows nobody, and two guests.
async fn desk(store: &Store) -> (Fleet, [Seat; 2], Desk) {
    let (engine, mut calls) = Fleet::local();
    tokio::spawn(async move {
        let mut followers = Vec::new();
        while let Some(call) = calls.recv().await {
            if let Request::Nodes(NodesRequest::Follow { .. }) = call.request {
                followers.push(call);
                continue;
            }
            let nobody = Event::failed(Failure::NoMatch, "no node");
            let _gone = call.events.send(nobody).await;
        }
    });
    let (fleet, guests, desk) = front(engine, store.clone()).await.expect("readable");
    let seats = [1, 2].map(|number| guests.seat(profile(number)).expect("free"));
    (fleet, seats, desk)
}

fn all_led(batch: Option<Batch>) -> ActRequest {
    ActRequest::Command {
        selector: Selector::all(),
        action: "led".to_owned(),
        arguments: Arguments::default(),
        lane: Lane::Control,
        ttl_ms: 60_000,
        ttl_given: true,
        timeout_ms: 60_000,
        batch,
    }
}

fn all_stop() -> ActRequest {
    ActRequest::Stop {
        selector: Selector::all(),
        timeout_ms: Some(10_000),
        also_bridged: false,
    }
}

/// Does what is ordered, and says what that was.
async fn done(orders: &mut mpsc::Receiver<Order>) -> Work {
    let order = tokio::time::timeout(Duration::from_secs(20), orders.recv()).await;
    let Order { work, reply, .. } = order.expect("in time").expect("ordered");
    let _gone = reply.send(Answer::Reply(Reply::done(Value::Null)));
    work
}

#[tokio::test]
async fn a_batch_that_was_asked_for_before_a_stop_does_not_go_out_after_its_release() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let batch = Batch {
        size: BatchSize::Count(1),
        wait_ms: 1_500,
        keep_going: true,
    };
    let mut told = fleet.perform(all_led(Some(batch))).await;
    assert!(matches!(done(&mut first.orders).await, Work::Command { .. }));
    let stopping = fleet.perform(all_stop()).await;
    for seat in [&mut first, &mut second] {
        assert_eq!(done(&mut seat.stops).await, Work::Stop);
    }
    drop(stopping);
    let release = ActRequest::Release {
        selector: Selector::all(),
        timeout_ms: 10_000,
    };
    let _releasing = fleet.perform(release).await;
    for seat in [&mut first, &mut second] {
        assert_eq!(done(&mut seat.orders).await, Work::Release);
        assert_eq!(seat.stopped(), None);
    }
    let mut ends = Vec::new();
    while let Some(event) = told.recv().await {
        if let Event::Delivery(delivery) = event {
            ends.push((delivery.node.to_string(), delivery.state));
        }
    }
    let ended = [("d1", Outcome::Done), ("d2", Outcome::Refused)];
    assert_eq!(ends, ended.map(|(name, state)| (name.to_owned(), state)));
    assert!(second.orders.try_recv().is_err(), "nothing is sent");
    // What is asked for from now on goes out.
    let _told = fleet.perform(all_led(None)).await;
    assert!(matches!(done(&mut second.orders).await, Work::Command { .. }));
    desk.close().await;
}

#[tokio::test]
async fn whoever_watches_sees_that_a_stop_is_in_force_and_that_it_is_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (engine, _calls) = Fleet::local();
    let (fleet, guests, desk) = front(engine, store).await.expect("readable");
    let _seat = guests.seat(profile(1)).expect("free");
    let selector = Selector::all();
    let mut told = fleet.perform(NodesRequest::Watch { selector }).await;
    let unconfirmed = async |told: &mut mpsc::Receiver<Event>| {
        let event = tokio::time::timeout(Duration::from_secs(20), told.recv()).await;
        let Event::Node(view) = event.expect("in time").expect("watched") else {
            panic!("not a node")
        };
        (view.stop_unconfirmed.is_some(), view.warnings.len())
    };
    assert_eq!(unconfirmed(&mut told).await, (false, 0));
    guests.stop(&Selector::all());
    assert_eq!(unconfirmed(&mut told).await, (true, 1));
    let lifted = guests.release(&Selector::all(), guests.standing().version());
    assert!(lifted.expect("fits").is_some());
    assert_eq!(unconfirmed(&mut told).await, (false, 0));
    desk.close().await;
}

#[test]
fn whoever_means_nobody_is_told_of_guests_and_not_to_invite_where_there_are_some() {
    let guests = Guests::default();
    let told = |failure, message: &str| {
        let mut event = Event::failed(failure, message);
        guests.name_in(&mut event);
        let Event::Failed { message, .. } = event else {
            panic!("not a failure")
        };
        message
    };
    let nobody = Failure::NoMatch;
    assert_eq!(told(nobody, NO_NODES), NO_NODES);
    let _seats = [1, 2].map(|number| guests.seat(profile(number)).expect("free"));
    let drones = "known drones of other programs are d1, d2";
    assert_eq!(
        told(nobody, &format!("{NO_NODES}; more")),
        format!("no node matches; {drones}; more")
    );
    for (failure, message) in [
        (nobody, "no node matches \"x\"; known are n1"),
        (Failure::Usage, "nothing was done: \"!x\" takes nobody away"),
    ] {
        assert_eq!(told(failure, message), format!("{message}; {drones}"));
    }
    assert_eq!(told(Failure::Usage, "no such file"), "no such file");
}

#[tokio::test]
async fn a_release_does_not_need_a_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, _second], desk) = desk(&store).await;
    let stopping = fleet.perform(all_stop()).await;
    assert_eq!(done(&mut first.stops).await, Work::Stop);
    drop(stopping);
    let disk = rusqlite::Connection::open(store.path()).expect("opens");
    for table in ["meta", "commands"] {
        let full = format!(
            "CREATE TRIGGER {table}_full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END"
        );
        disk.execute_batch(&full).expect("made");
    }
    let release = ActRequest::Release {
        selector: Selector::all(),
        timeout_ms: 5_000,
    };
    let _releasing = fleet.perform(release).await;
    assert_eq!(done(&mut first.orders).await, Work::Release);
    desk.close().await;
}

#[tokio::test]
async fn whoever_watches_sees_that_a_guest_has_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (engine, _calls) = Fleet::local();
    let (fleet, guests, desk) = front(engine, store).await.expect("readable");
    let seat = guests.seat(profile(1)).expect("free");
    seat.tell(Presence {
        online: true,
        ..Presence::default()
    });
    let selector = Selector::all();
    let mut told = fleet.perform(NodesRequest::Watch { selector }).await;
    let view = async |told: &mut mpsc::Receiver<Event>| {
        let event = tokio::time::timeout(Duration::from_secs(20), told.recv()).await;
        let Event::Node(view) = event.expect("in time").expect("watched") else {
            panic!("not a node")
        };
        view
    };
    assert_eq!(view(&mut told).await.state, NodeState::Online);
    drop(seat);
    let last = view(&mut told).await;
    assert_eq!((last.id, last.state), (profile(1).node.id, NodeState::Offline));
    assert_eq!(last.warnings, [Warning::DeviceLeft]);
    // It is told of again when it is back.
    let back = guests.seat(profile(1)).expect("free");
    back.tell(Presence {
        online: true,
        ..Presence::default()
    });
    assert!(view(&mut told).await.warnings.is_empty());
    desk.close().await;
}

#[tokio::test]
async fn a_stop_that_is_one_too_many_is_told_to_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (fleet, [mut first, mut second], desk) = desk(&store).await;
    let stop = |name: &str| ActRequest::Stop {
        selector: Selector::parse(name).expect("a name"),
        timeout_ms: Some(1_000),
        also_bridged: false,
    };
    for number in 0..standing::ORDERS_MAX {
        let mut told = fleet.perform(stop(&format!("absent-{number}"))).await;
        while told.recv().await.is_some() {}
    }
    assert_eq!((first.stopped(), second.stopped()), (None, None));
    // What was asked for before is withdrawn at all of them.
    let meant = first.guests.meant(&Selector::all());
    let mut told = fleet.perform(stop("d1")).await;
    for seat in [&mut first, &mut second] {
        assert_eq!(done(&mut seat.stops).await, Work::Stop);
        assert_eq!(seat.stopped(), Some(Selector::all()));
    }
    let led = Work::Command {
        action: "led".to_owned(),
        arguments: Arguments::default(),
    };
    assert!(meant.iter().all(|guest| guest.overtaken(&led).is_some()));
    let (mut notes, mut targets) = (Vec::new(), Vec::new());
    while let Some(event) = told.recv().await {
        if let Event::Note { text } = event {
            notes.push(text);
        } else if let Event::Targets { targets: all } = event {
            targets = all;
        }
    }
    assert_eq!((notes.len(), targets.len()), (1, 2), "{notes:?}");
    assert!(notes[0].starts_with("too many stops stand"), "{notes:?}");
    desk.close().await;
}
