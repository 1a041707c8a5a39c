//! The addresses of this machine's network interfaces, and when they change.
//!
//! A field has no default route and no DNS, so broadcasts go out per interface; and a Pi's Wi-Fi comes and
//! goes. Polling every second is as quick as a person notices and works on every kernel and in every container.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use if_addrs::IfAddr;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Time between two looks at the interfaces.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Most addresses that are used, the lowest interfaces first: a machine full of containers has hundreds, and
/// each costs a datagram every few seconds.
pub const ADDRESSES_MAX: usize = 64;

/// Where 127.0.0.1 broadcasts to. The kernel routes it, but does not list it as the interface's own.
const LOOPBACK_BROADCAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

/// One address of one interface that is up and has a carrier.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddr {
    /// The kernel's interface index; the scope of an IPv6 link-local address.
    pub index: u32,
    /// `eth0`
    pub name: String,
    /// The address itself.
    pub ip: IpAddr,
    /// The broadcast address of its network; `None` for IPv6 and for point-to-point links.
    pub broadcast: Option<Ipv4Addr>,
}

/// The addresses that can be used now, in a fixed order.
pub type Interfaces = Arc<[InterfaceAddr]>;

/// Lists the addresses that can be used now.
///
/// # Errors
/// The system's error; a later attempt may succeed.
pub fn list() -> std::io::Result<Vec<InterfaceAddr>> {
    let mut list: Vec<_> = if_addrs::get_if_addrs()?
        .into_iter()
        // Without a carrier (`IFF_RUNNING`) no datagram is sent or received.
        .filter(if_addrs::Interface::is_oper_up)
        .filter_map(|interface| {
            let broadcast = broadcast_of(&interface.addr, interface.is_p2p);
            Some(InterfaceAddr {
                index: interface.index?,
                ip: interface.addr.ip(),
                name: interface.name,
                broadcast,
            })
        })
        .collect();
    list.sort();
    list.dedup();
    list.truncate(ADDRESSES_MAX);
    Ok(list)
}

fn broadcast_of(addr: &IfAddr, point_to_point: bool) -> Option<Ipv4Addr> {
    let v4 = match addr {
        IfAddr::V4(v4) => v4,
        IfAddr::V6(_) => return None,
    };
    if v4.is_loopback() {
        return Some(LOOPBACK_BROADCAST);
    }
    // Networks of one or two addresses (/32, /31) have no broadcast address (RFC 3021).
    if point_to_point || v4.prefixlen > 30 {
        return None;
    }
    // An address added without `brd` has none listed, but the kernel routes the usual one nevertheless.
    let usual = Ipv4Addr::from(u32::from(v4.ip) | !u32::from(v4.netmask));
    Some(v4.broadcast.filter(|own| !own.is_unspecified()).unwrap_or(usual))
}

/// Starts a task that polls the interfaces every [`POLL_INTERVAL`] and publishes changes. The channel holds the present
/// list from the start. The task ends with the token, or when all receivers are dropped.
pub fn watch(shutdown: CancellationToken) -> watch::Receiver<Interfaces> {
    let (sender, receiver) = watch::channel(Interfaces::from(list().unwrap_or_default()));
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = sender.closed() => return,
                _tick = tick.tick() => {}
            }
            match list() {
                Ok(list) => {
                    sender.send_if_modified(|known| {
                        let changed = **known != *list;
                        if changed {
                            tracing::debug!(addresses = ?list, "Network interfaces changed");
                            *known = list.into();
                        }
                        changed
                    });
                }
                // Out of descriptors or memory: the last list stays in use.
                Err(error) => tracing::debug!(%error, "Network interfaces not listed"),
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(ip: [u8; 4], prefixlen: u8, broadcast: Option<[u8; 4]>) -> IfAddr {
        let netmask = u32::MAX.checked_shl(32 - u32::from(prefixlen)).unwrap_or(0);
        IfAddr::V4(if_addrs::Ifv4Addr {
            ip: ip.into(),
            netmask: netmask.into(),
            prefixlen,
            broadcast: broadcast.map(Into::into),
        })
    }

    #[test]
    fn broadcast_address_is_derived_for_each_network() {
        for (addr, point_to_point, expected) in [
            (
                v4([10, 1, 2, 3], 16, Some([10, 1, 255, 255])),
                false,
                Some([10, 1, 255, 255]),
            ),
            (v4([10, 1, 2, 3], 16, None), false, Some([10, 1, 255, 255])),
            (
                v4([10, 1, 2, 3], 24, Some([0, 0, 0, 0])),
                false,
                Some([10, 1, 2, 255]),
            ),
            (v4([10, 1, 2, 3], 32, None), false, None),
            (v4([10, 1, 2, 3], 31, None), false, None),
            (v4([10, 1, 2, 3], 24, None), true, None),
            (v4([127, 0, 0, 1], 8, None), false, Some([127, 255, 255, 255])),
        ] {
            let found = broadcast_of(&addr, point_to_point);
            assert_eq!(found, expected.map(Ipv4Addr::from), "{addr:?}");
        }
    }

    #[tokio::test]
    async fn loopback_interface_is_listed_and_watched() {
        let shutdown = CancellationToken::new();
        let _stopped_at_the_end = shutdown.clone().drop_guard();
        let interfaces = watch(shutdown);
        let loopback = interfaces
            .borrow()
            .iter()
            .find(|interface| interface.ip.is_loopback() && interface.ip.is_ipv4())
            .cloned()
            .expect("every machine has 127.0.0.1");
        assert_eq!(loopback.broadcast, Some(LOOPBACK_BROADCAST));
        assert_ne!(loopback.index, 0);
    }

    #[tokio::test]
    async fn interface_watcher_ends_with_its_token() {
        let shutdown = CancellationToken::new();
        let mut interfaces = watch(shutdown.clone());
        shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), async {
            while interfaces.changed().await.is_ok() {}
        });
        ended.await.expect("ends");
    }
}
