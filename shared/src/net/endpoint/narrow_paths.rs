//! The part of the endpoint's task that concerns paths which drop large packets.

use std::net::IpAddr;

use super::task::EndpointTask;
use crate::net::clock;
use crate::net::socket::{SMALL_SEGMENT_BYTES, SegmentSize};
use crate::proto::discovery::narrow_paths::NARROW_FOR;
use crate::proto::session::path_check::PathVerdict;

impl EndpointTask {
    /// The segments of a dial to this address.
    pub(super) fn segments_to(&self, ip: IpAddr) -> SegmentSize {
        if self.narrow_paths.borrow().contains(ip, clock::now()) {
            SegmentSize::Small
        } else {
            SegmentSize::Path
        }
    }

    /// Links to this address use small segments from now on.
    pub(super) fn add_narrow_path(&mut self, ip: IpAddr) {
        let mut is_new = false;
        self.narrow_paths
            .send_modify(|paths| is_new = paths.insert(ip, clock::now()));
        if is_new {
            tracing::debug!(%ip, bytes = SMALL_SEGMENT_BYTES, "Links use small segments");
        }
    }

    pub(super) fn on_path_judged(&mut self, ip: IpAddr, verdict: PathVerdict) {
        match verdict {
            PathVerdict::Fine => {}
            PathVerdict::Doubtful => self.add_narrow_path(ip),
            PathVerdict::DropsLarge => {
                self.add_narrow_path(ip);
                tracing::warn!(
                    %ip,
                    segment_bytes = SMALL_SEGMENT_BYTES,
                    minutes = NARROW_FOR.as_secs() / 60,
                    "Path drops large packets without an answer, so links use small segments; set the interface's MTU \
                     to the path's, or let ICMP pass"
                );
            }
        }
    }
}
