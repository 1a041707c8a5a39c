//! Peers that are connected at a gateway.

use super::table::{self, Cell};
use super::{Paint, Style, sanitize};
use swarm_shared::api::PeerView;

/// The table of peers; after a message was sent, with the result for each.
pub fn table(views: &[PeerView], sent: bool, style: Style) -> Vec<String> {
    if views.is_empty() {
        return vec!["no peer is connected".to_owned()];
    }
    let rows: Vec<Vec<Cell>> = views
        .iter()
        .map(|view| {
            let fate = match &view.error {
                Some(error) => Cell::painted(sanitize(error), Paint::Bad),
                None if sent => Cell::painted("sent", Paint::Good),
                None => Cell::plain(""),
            };
            let side = if view.dialled { "dialled" } else { "came" };
            vec![Cell::plain(view.peer.to_string()), Cell::plain(side), fate]
        })
        .collect();
    table::render(&["PEER", "SIDE", "STATE"], &rows, style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_table_has_one_line_per_peer() {
        let peer = |port, error: Option<&str>| PeerView {
            gateway: "socktools".to_owned(),
            peer: ([10, 0, 0, 9], port).into(),
            dialled: port == 1,
            error: error.map(str::to_owned),
        };
        let views = [peer(1, None), peer(2, Some("gone"))];
        let lines = table(&views, true, Style::default());
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1].contains("10.0.0.9:1") && lines[1].ends_with("dialled  sent"),
            "{lines:?}"
        );
        assert!(lines[2].ends_with("gone"), "{lines:?}");
        assert_eq!(table(&[], false, Style::default()), ["no peer is connected"]);
    }
}
