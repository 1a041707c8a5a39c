//! `[doors.knut]`: Knut's clients.

use super::{Common, Door, Kind};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knut {
    /// What every door has.
    pub common: Common,
}

/// Its usual port.
const PORT: u16 = 8080;

impl Door for Knut {
    const NAME: &'static str = "knut";
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
