//! The key files of the state directory: who this peer is, and on one station the fleet's root.
//!
//! A key file is two lines of text, mode 0600: a header that says which key it is, and the 32-byte seed as 64
//! hexadecimal digits. The headers differ, so that one kind of key is never taken for the other. A key that other
//! users of the machine could have read is refused, not repaired: a copy of it may exist.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::random::{self, NoRandomness};
use super::state_file::{self, MODE_SECRET, StateFileError};
use crate::proto::hex;
use crate::proto::trust::SigningKey;

/// The key files of a state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFile {
    /// The key that identifies this peer.
    Identity,
    /// The fleet's root, which only the station that made the fleet has.
    FleetRoot,
}

impl KeyFile {
    /// The file's name in the state directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity.key",
            Self::FleetRoot => "fleet-root.key",
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Identity => "swarm identity key v1, Ed25519 seed, keep secret",
            Self::FleetRoot => "swarm fleet root key v1, Ed25519 seed, keep secret",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Identity => "delete it to get a new key and join again",
            Self::FleetRoot => "delete it and make a new fleet, which every member has to join again",
        }
    }
}

/// Why a key could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error(transparent)]
    StateFile(#[from] StateFileError),
    /// A new key could not be drawn.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// Other users of the machine could have read the file.
    #[error(
        "{path} has mode {mode:04o}, so other users of this machine can read the key: type `chmod 600 {path}` if you \
         trust them all, or {remedy}",
        path = path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// The file's permission bits.
        mode: u32,
        /// What to do about the key.
        remedy: &'static str,
    },
    /// The file is not a key file, or holds the other kind of key.
    #[error(
        "{path} is not what it should be: a line {header:?} and a line of 64 hexadecimal digits; put it back from a \
         copy, or {remedy}",
        path = path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The first line that a file of this kind has.
        header: &'static str,
        /// What to do about the key.
        remedy: &'static str,
    },
}

/// The key in `dir`; `None` if there is none.
///
/// # Errors
/// [`IdentityError`]: the file is there and is not to be used.
pub fn load(dir: &Path, which: KeyFile) -> Result<Option<SigningKey>, IdentityError> {
    let path = dir.join(which.name());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(state_file::io_error("read", &path)(error).into()),
    };
    // The mode of the open file, so that it belongs to the content that is read.
    let metadata = file.metadata().map_err(state_file::io_error("read", &path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed {
            path,
            mode,
            remedy: which.remedy(),
        });
    }
    let bytes = state_file::read_open(&file, &path)?;
    match parse(&bytes, which) {
        Some(seed) => Ok(Some(SigningKey::from_seed(seed))),
        None => Err(malformed(path, which)),
    }
}

/// The key in `dir`, newly drawn if there is none. Of two processes that ask at once, both get the same.
///
/// # Errors
/// [`IdentityError`].
pub fn load_or_create(dir: &Path, which: KeyFile) -> Result<SigningKey, IdentityError> {
    if let Some(key) = load(dir, which)? {
        return Ok(key);
    }
    let key = SigningKey::from_seed(random::bytes()?);
    let path = dir.join(which.name());
    if state_file::create_atomic(&path, encode(&key, which).as_bytes(), MODE_SECRET)? {
        return Ok(key);
    }
    load(dir, which)?.ok_or_else(|| malformed(path, which))
}

fn malformed(path: PathBuf, which: KeyFile) -> IdentityError {
    IdentityError::Malformed {
        path,
        header: which.header(),
        remedy: which.remedy(),
    }
}

fn encode(key: &SigningKey, which: KeyFile) -> String {
    format!("{}\n{}\n", which.header(), hex::encode(key.seed()))
}

fn parse(bytes: &[u8], which: KeyFile) -> Option<[u8; 32]> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.trim_end().lines();
    let header = lines.next()?;
    let seed = hex::decode(lines.next()?.trim_end())?;
    (header.trim_end() == which.header() && lines.next().is_none()).then_some(seed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn key_is_created_once_and_reloaded() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(load(dir.path(), KeyFile::Identity).expect("no file").is_none());
        let made = load_or_create(dir.path(), KeyFile::Identity).expect("a new key");
        let found = load_or_create(dir.path(), KeyFile::Identity).expect("the same key");
        assert_eq!(made.public(), found.public());
        let root = load_or_create(dir.path(), KeyFile::FleetRoot).expect("another key");
        assert_ne!(root.public(), made.public());
        for which in [KeyFile::Identity, KeyFile::FleetRoot] {
            let metadata = fs::metadata(dir.path().join(which.name())).expect("a file");
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        }
    }

    #[test]
    fn concurrent_creators_get_one_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let keys = std::thread::scope(|scope| {
            let start = || {
                scope.spawn(|| {
                    load_or_create(dir.path(), KeyFile::Identity)
                        .expect("a key")
                        .public()
                })
            };
            let threads: Vec<_> = (0..8).map(|_| start()).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect::<Vec<_>>()
        });
        assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn key_readable_by_others_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        load_or_create(dir.path(), KeyFile::Identity).expect("a new key");
        let path = dir.path().join("identity.key");
        for mode in [0o640, 0o604, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our file");
            let error = load_or_create(dir.path(), KeyFile::Identity)
                .expect_err("exposed")
                .to_string();
            let chmod = format!("chmod 600 {}", path.display());
            assert!(
                error.contains(&chmod) && error.contains(&format!("{mode:04o}")),
                "{error}"
            );
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("our file");
        load(dir.path(), KeyFile::Identity).expect("a stricter mode is as good");
    }

    #[test]
    fn key_file_of_another_kind_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        load_or_create(dir.path(), KeyFile::FleetRoot).expect("a new key");
        fs::rename(dir.path().join("fleet-root.key"), dir.path().join("identity.key")).expect("our files");
        let error = load_or_create(dir.path(), KeyFile::Identity).expect_err("the other kind");
        assert!(matches!(error, IdentityError::Malformed { .. }));
    }

    #[test]
    fn damaged_key_file_is_never_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("identity.key");
        let header = KeyFile::Identity.header();
        for damaged in [
            "",
            "hello",
            header,
            &format!("{header}\nabc\n"),
            &format!("{header}\n{:064}\nx\n", 0),
        ] {
            state_file::write_atomic(&path, damaged.as_bytes(), MODE_SECRET).expect("written");
            let error = load_or_create(dir.path(), KeyFile::Identity).expect_err("damaged");
            assert!(matches!(error, IdentityError::Malformed { .. }), "{damaged:?}");
            assert_eq!(fs::read(&path).expect("still there"), damaged.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            prop_assert_eq!(parse(&bytes, KeyFile::Identity), None);
        }

        #[test]
        fn key_file_round_trips(seed: [u8; 32]) {
            let text = encode(&SigningKey::from_seed(seed), KeyFile::FleetRoot);
            prop_assert_eq!(parse(text.as_bytes(), KeyFile::FleetRoot), Some(seed));
            prop_assert_eq!(parse(text.replace('\n', "\r\n").as_bytes(), KeyFile::FleetRoot), Some(seed));
        }
    }
}
