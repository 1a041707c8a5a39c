//! Parsers of the kernel's text files. Each function is pure, and returns `None` for a text of another format.

use serde::Serialize;

/// Seconds since boot, from `/proc/uptime`.
pub fn uptime(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The load averages of 1, 5 and 15 minutes, from `/proc/loadavg`.
pub fn load(text: &str) -> Option<[f64; 3]> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some([next()?, next()?, next()?])
}

/// Memory of the machine, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Total size.
    pub total: u64,
    /// Memory that programs can still allocate.
    pub available: u64,
}

/// Parses `/proc/meminfo`.
pub fn memory(text: &str) -> Option<Memory> {
    let bytes = |key: &str| -> Option<u64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Memory {
        total: bytes("MemTotal")?,
        available: bytes("MemAvailable")?,
    })
}

/// Signal of a wireless interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wifi {
    /// Name of the interface, such as `wlan0`.
    pub interface: String,
    /// Link quality on the driver's own scale, often 0 to 70.
    pub quality: i64,
    /// Signal level in dBm.
    pub signal: i64,
}

/// The first interface in `/proc/net/wireless`.
pub fn wifi(text: &str) -> Option<Wifi> {
    text.lines().skip(2).find_map(|line| {
        let (interface, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_whitespace().skip(1);
        let mut next = || numbers.next()?.trim_end_matches('.').parse().ok();
        Some(Wifi {
            interface: interface.trim().to_owned(),
            quality: next()?,
            signal: next()?,
        })
    })
}

/// Degrees Celsius, from a thermal zone's `temp`.
pub fn temperature(text: &str) -> Option<f64> {
    let thousandths: i32 = text.trim().parse().ok()?;
    // A sensor that is not connected reads far outside this range.
    (-50_000..200_000)
        .contains(&thousandths)
        .then(|| f64::from(thousandths) / 1000.0)
}

/// Throttling by the firmware of a Raspberry Pi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Throttling {
    /// The supply voltage is too low now.
    pub under_voltage: bool,
    /// The processor is throttled now.
    pub throttled: bool,
    /// The supply voltage has been too low since boot.
    pub under_voltage_seen: bool,
    /// The processor has been throttled since boot.
    pub throttled_seen: bool,
}

/// Parses the firmware's `get_throttled`, a hexadecimal number.
pub fn throttling(text: &str) -> Option<Throttling> {
    let digits = text.trim();
    let bits = u32::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()?;
    let bit = |number: u32| bits & (1 << number) != 0;
    Some(Throttling {
        under_voltage: bit(0),
        // Frequency capped, throttled, soft temperature limit.
        throttled: bit(1) || bit(2) || bit(3),
        under_voltage_seen: bit(16),
        throttled_seen: bit(17) || bit(18) || bit(19),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_parsed() {
        assert_eq!(uptime("12345.67 54321.00\n"), Some(12345.67));
        assert_eq!(load("0.52 0.58 0.59 1/467 12345\n"), Some([0.52, 0.58, 0.59]));
        let text = "MemTotal:        3884144 kB\nMemFree:          123 kB\nMemAvailable:    2000000 kB\n";
        assert_eq!(
            memory(text),
            Some(Memory {
                total: 3_884_144 * 1024,
                available: 2_000_000 * 1024
            })
        );
        let text = "Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE\n \
                    face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22\n \
                    wlan0: 0000   60.  -50.  -256        0      0      0      0      0        0\n";
        assert_eq!(
            wifi(text),
            Some(Wifi {
                interface: "wlan0".to_owned(),
                quality: 60,
                signal: -50
            })
        );
        assert_eq!(temperature("48312\n"), Some(48.312));
        let now = throttling("50005\n").expect("bits");
        assert!(now.under_voltage && now.throttled && now.under_voltage_seen && now.throttled_seen);
        let once = throttling("0x50000").expect("bits");
        assert!(!once.under_voltage && !once.throttled && once.under_voltage_seen);
    }

    #[test]
    fn malformed_kernel_files_parse_to_none() {
        for text in [
            "",
            "\n",
            "x",
            "a b c",
            "MemTotal: x kB",
            "1\n2\n3: 4",
            "\n\nwlan0: 0",
        ] {
            assert_eq!(load(text), None, "{text:?}");
            assert_eq!(memory(text), None, "{text:?}");
            assert_eq!(wifi(text), None, "{text:?}");
        }
        assert_eq!(uptime("x"), None);
        assert_eq!(temperature("-274000"), None);
        assert_eq!(throttling("zz"), None);
    }

    proptest::proptest! {
        #[test]
        fn kernel_file_parsers_never_panic(text in "\\PC*") {
            let _ = (uptime(&text), load(&text), memory(&text), wifi(&text), temperature(&text), throttling(&text));
        }
    }
}
