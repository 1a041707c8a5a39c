//! `[doors.clever_show]`: clever-show's drone clients come here as to their own server.

use super::{Common, Door, Kind};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CleverShow {
    /// What every door has.
    pub common: Common,
}

/// Its usual port.
const PORT: u16 = 25000;

impl Door for CleverShow {
    const NAME: &'static str = "clever_show";
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
