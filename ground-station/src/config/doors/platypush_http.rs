//! `[doors.platypush_http]`: Platypush's messages, hooks and events over HTTP.

use super::{Common, Door, Kind};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatypushHttp {
    /// What every door has.
    pub common: Common,
}

/// Its usual port.
const PORT: u16 = 8008;

impl Door for PlatypushHttp {
    const NAME: &'static str = "platypush_http";
    const KEYS: &'static [(&'static str, Kind)] = &[];

    fn open() -> Self {
        Self {
            common: Common::at(PORT),
        }
    }

    fn common(&mut self) -> &mut Common {
        &mut self.common
    }
}
