//! `[doors.socktools]`: peers of socktools.

use super::{Common, Door, Kind};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socktools {
    /// What every door has.
    pub common: Common,
}

/// Its usual port.
const PORT: u16 = 7423;

impl Door for Socktools {
    const NAME: &'static str = "socktools";
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
