//! `[doors.platypush_tcp]`: Platypush's messages over TCP.

use super::{Common, Door, Kind};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatypushTcp {
    /// What every door has.
    pub common: Common,
}

/// Its usual port.
const PORT: u16 = 1234;

impl Door for PlatypushTcp {
    const NAME: &'static str = "platypush_tcp";
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
