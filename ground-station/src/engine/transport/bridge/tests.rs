//! Registration of devices, and what watchers are told of them.

use std::time::Duration;

use super::*;

fn profile(number: usize) -> DeviceProfile {
    let name = format!("d{number}");
    DeviceProfile {
        node: NodeRef {
            node: device_name(&name),
            id: device_id("test", &name),
        },
        tags: BTreeMap::new(),
        software: None,
        reads: Arc::default(),
        file_bytes_max: 1,
    }
}

#[test]
fn unchanged_presence_does_not_wake_watchers() {
    let devices = BridgedDevices::default();
    let device = devices.register(profile(1)).expect("free");
    let start = clock::now();
    let here = |seconds, battery: u8| DevicePresence {
        online: true,
        heard: Some(start + Duration::from_secs(seconds)),
        telemetry: BTreeMap::from([("battery".to_owned(), battery.into())]),
        ..DevicePresence::default()
    };
    let mut changes = devices.changes();
    let mut woken = |presence| {
        device.publish(presence);
        let changed = changes.has_changed().expect("kept");
        changes.mark_unchanged();
        changed
    };
    assert!(woken(here(1, 80)));
    assert!(!woken(here(2, 80)));
    assert!(woken(here(3, 79)));
    assert!(!woken(here(4, 79)));
    let heard = devices.table().devices[&profile(1).node.id].presence.heard;
    assert_eq!(
        heard,
        Some(start + Duration::from_secs(4)),
        "the caller is told when"
    );
}

#[test]
fn full_registry_forgets_the_device_away_longest() {
    let devices = BridgedDevices::default();
    let register = |number| devices.register(profile(number));
    let mut guards: Vec<DeviceGuard> = (0..DEVICES_MAX)
        .map(|number| register(number).expect("free"))
        .collect();
    assert_eq!(
        register(DEVICES_MAX).err(),
        Some(RegisterError::Full),
        "none has told anything"
    );
    let start = clock::now();
    let publish = |device: &DeviceGuard, online, kept, second| {
        device.publish(DevicePresence {
            online,
            kept,
            heard: Some(start + Duration::from_secs(second)),
            ..DevicePresence::default()
        });
    };
    publish(&guards[0], true, false, 0);
    publish(&guards[1], false, true, 1);
    assert_eq!(
        register(DEVICES_MAX).err(),
        Some(RegisterError::Full),
        "one is here, one is waited for"
    );
    publish(&guards[2], false, false, 3);
    publish(&guards[3], false, false, 2);
    let _new = register(DEVICES_MAX).expect("of the one that is gone longest");
    let ended = |device: &mut DeviceGuard| {
        matches!(
            device.commands.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        ) && matches!(
            device.stops.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        )
    };
    let forgotten: Vec<usize> = (0..DEVICES_MAX)
        .filter(|number| ended(&mut guards[*number]))
        .collect();
    assert_eq!((forgotten, devices.len()), (vec![3], DEVICES_MAX));
    let lost = |number: &usize| guards[*number].is_lost();
    assert_eq!((0..DEVICES_MAX).filter(lost).collect::<Vec<_>>(), [3]);
    // It is back before its old device is dropped, which then says nothing about it.
    let back = register(3).expect("of the next one");
    assert!(guards[3].is_lost() && !back.is_lost(), "the old one stays lost");
    publish(&guards[3], true, false, 9);
    assert_eq!(devices.targets(&Selector::parse("d3").expect("a name")).len(), 1);
    assert!(!devices.table().devices[&profile(3).node.id].presence.online);
    drop(guards);
    assert_eq!(devices.len(), 2, "those that were seated last");
}
