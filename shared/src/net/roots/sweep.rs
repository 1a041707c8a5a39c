//! Removal of what crashed transfers left behind.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};

/// How deep below a root leftovers are looked for, in directories.
const DEPTH_MAX: usize = 32;

/// Removes leftovers below `dir`; returns how many. Links are not followed; what is locked is in use and stays.
pub(super) fn sweep(dir: &Path) -> usize {
    sweep_dir(dir, DEPTH_MAX)
}

/// Removes leftovers in `dir` itself; returns how many.
pub(super) fn sweep_top_level(dir: &Path) -> usize {
    sweep_dir(dir, 0)
}

fn sweep_dir(dir: &Path, depth: usize) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            removed += sweep_dir(&entry.path(), depth - 1);
        } else if kind.is_file() && entry.file_name().to_str().is_some_and(is_temp) {
            removed += usize::from(remove_unlocked(&entry.path()));
        }
    }
    removed
}

/// `.NAME.PID-RANDOM.part`, as [`super::IncomingFile`] names its files.
fn is_temp(name: &str) -> bool {
    let Some((head, tail)) = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".part"))
        .and_then(|name| name.rsplit_once('.'))
    else {
        return false;
    };
    let Some((pid, random)) = tail.split_once('-') else {
        return false;
    };
    !head.is_empty()
        && !pid.is_empty()
        && pid.bytes().all(|b| b.is_ascii_digit())
        && random.len() == 16
        && random.bytes().all(|b| b.is_ascii_hexdigit())
}

fn remove_unlocked(path: &Path) -> bool {
    let nofollow = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let open = File::options().write(true).custom_flags(nofollow).open(path);
    open.is_ok_and(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && std::fs::remove_file(path).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_matches_only_temp_file_names() {
        assert!(is_temp(".take1.csv.77-0123456789abcdef.part"));
        for other in [
            "take1.csv.77-0123456789abcdef.part",
            ".take1.csv.part",
            ".a.-0123456789abcdef.part",
            ".a.1-012345678.part",
            "..1-0123456789abcdef.part",
        ] {
            assert!(!is_temp(other), "{other}");
        }
    }
}
