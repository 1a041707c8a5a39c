//! The kinds of faults, and a count of each.

use std::fmt;

/// A fault that a run may contain. A kind that never occurs in a sweep fails the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    missing_docs,
    reason = "docs/testing.md says what each means; the names are for that table"
)]
pub enum Fault {
    Drop,
    Delay,
    Reorder,
    Duplicate,
    Partition,
    AsymmetricPartition,
    HalfOpenLink,
    SlowLink,
    ClockForward,
    ClockBack,
    Pause,
    CrashBeforeJournal,
    CrashInJournal,
    CrashAfterJournal,
    CrashBeforeSend,
    CrashAfterSend,
    TornWrite,
    LostUnsynced,
    NoSpace,
    IoError,
    CorruptTail,
    AddressChange,
    StationCrash,
    Reboot,
    StationReplaced,
    SecondIssuer,
    ClonedStation,
    ForgedDatagram,
    ReplayedDatagram,
    ObserverOrders,
    RevokedOrders,
}

impl Fault {
    /// All kinds, in the order of reports.
    pub const ALL: [Self; 31] = [
        Self::Drop,
        Self::Delay,
        Self::Reorder,
        Self::Duplicate,
        Self::Partition,
        Self::AsymmetricPartition,
        Self::HalfOpenLink,
        Self::SlowLink,
        Self::ClockForward,
        Self::ClockBack,
        Self::Pause,
        Self::CrashBeforeJournal,
        Self::CrashInJournal,
        Self::CrashAfterJournal,
        Self::CrashBeforeSend,
        Self::CrashAfterSend,
        Self::TornWrite,
        Self::LostUnsynced,
        Self::NoSpace,
        Self::IoError,
        Self::CorruptTail,
        Self::AddressChange,
        Self::StationCrash,
        Self::Reboot,
        Self::StationReplaced,
        Self::SecondIssuer,
        Self::ClonedStation,
        Self::ForgedDatagram,
        Self::ReplayedDatagram,
        Self::ObserverOrders,
        Self::RevokedOrders,
    ];
}

/// In kebab case: `crash-before-journal`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}");
        let mut words = String::new();
        for (i, letter) in name.char_indices() {
            if letter.is_ascii_uppercase() && i > 0 {
                words.push('-');
            }
            words.push(letter.to_ascii_lowercase());
        }
        f.pad(&words)
    }
}

/// How often each kind occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultCounts([u64; Fault::ALL.len()]);

impl Default for FaultCounts {
    fn default() -> Self {
        Self([0; Fault::ALL.len()])
    }
}

impl FaultCounts {
    pub(super) fn increment(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// How often this kind occurred.
    pub fn count_of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    /// The kinds that never occurred.
    pub fn never_counted(&self) -> Vec<Fault> {
        Fault::ALL
            .into_iter()
            .filter(|fault| self.count_of(*fault) == 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_each_fault_once_in_order() {
        for (i, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault as usize, i);
        }
        assert_eq!(Fault::CrashBeforeJournal.to_string(), "crash-before-journal");
    }
}
