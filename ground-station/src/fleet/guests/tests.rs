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
