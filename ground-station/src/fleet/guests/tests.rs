//! Who has a seat.

use std::time::Duration;

use super::*;

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
        file_bytes_max: 0,
    }
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
    // It is back before its old seat is dropped, which then says nothing about it.
    let _back = seat(3).expect("of the next one");
    tell(&seats[3], true, false, 9);
    assert_eq!(guests.meant(&Selector::parse("d3").expect("a name")).len(), 1);
    assert!(!guests.book()[&profile(3).node.id].presence.online);
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
