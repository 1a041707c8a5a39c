//! The promises of this module, each with both ways of opening.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SECRET: &[u8] = b"outside";

struct TestRoots {
    dir: TempDir,
    roots: Roots,
}

impl TestRoots {
    /// A root `r` with a directory, a file, and links in every direction; a secret outside.
    fn new(opener: Opener) -> Self {
        let dir = TempDir::new().expect("a directory");
        let root = dir.path().join("root");
        let outside = dir.path().join("outside");
        fs::create_dir_all(root.join("d")).expect("a root");
        fs::create_dir(&outside).expect("an outside");
        fs::write(outside.join("secret"), SECRET).expect("a secret");
        fs::write(root.join("f"), b"inside").expect("a file");
        symlink(&outside, root.join("abs")).expect("a link");
        symlink("../outside", root.join("rel")).expect("a link");
        symlink("../outside/secret", root.join("lf")).expect("a link");
        symlink("d", root.join("in")).expect("a link");
        symlink("/proc/self/cwd", root.join("magic")).expect("a link");
        let roots = Roots {
            opener,
            ..Roots::new(BTreeMap::from([("r".to_owned(), root)]))
        };
        Self { dir, roots }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    fn put(&self, path: &str, content: &[u8]) -> Result<ReceivedFile, FileError> {
        let size = content.len() as u64;
        let mut file = IncomingFile::create(&self.roots, path, size)?;
        file.write(0, content)?;
        file.finish(size, sha256(content), 0o644)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>, FileError> {
        let mut file = OutgoingFile::open(&self.roots, path)?;
        let mut content = Vec::new();
        while let Some(chunk) = file.next_chunk(FILE_CHUNK_BYTES)? {
            if chunk.offset == content.len() as u64 {
                content.extend_from_slice(&chunk.bytes);
            }
        }
        if file.sha256() != sha256(&content) {
            content.clear();
        }
        Ok(content)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    sha256
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

const BOTH: [Opener; 2] = [Opener::Openat2, Opener::CapStd];

#[test]
fn file_round_trips_with_its_mode() {
    for opener in BOTH {
        let place = TestRoots::new(opener);
        let content: Vec<u8> = (0..600_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        let size = content.len() as u64;
        let mut file = IncomingFile::create(&place.roots, "r/new/deep/x.bin", size).expect("a file");
        for (i, chunk) in content.chunks(FILE_CHUNK_BYTES).enumerate() {
            file.write((i * FILE_CHUNK_BYTES) as u64, chunk).expect("room");
        }
        assert!(
            !place.root().join("new/deep/x.bin").exists(),
            "visible before it is whole"
        );
        file.finish(size, sha256(&content), 0o6755).expect("whole");
        let path = place.root().join("new/deep/x.bin");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "setuid and setgid are dropped");
        assert_eq!(names(&place.root().join("new/deep")), ["x.bin"]);
        assert_eq!(place.get("r/new/deep/x.bin").expect("readable"), content);
        assert_eq!(
            OutgoingFile::open(&place.roots, "r/new/deep/x.bin")
                .expect("there")
                .mode(),
            0o755
        );
    }
}

#[test]
fn symlinks_and_escapes_are_refused_by_the_kernel() {
    for opener in BOTH {
        let place = TestRoots::new(opener);
        for path in ["r/abs/secret", "r/rel/secret", "r/lf", "r/in/x", "r/magic/x"] {
            let error = place.get(path).expect_err(path);
            assert!(
                matches!(error, FileError::Outside { .. }),
                "{path}: {error} {opener:?}"
            );
        }
        for path in ["r/abs/x", "r/rel/x", "r/in/x", "r/magic/x"] {
            let error = place.put(path, b"x").expect_err(path);
            assert!(
                matches!(error, FileError::Outside { .. }),
                "{path}: {error} {opener:?}"
            );
        }
        for path in [
            "", "r", "r/", "/r/f", "r/../x", "r/./f", "r//f", "r/a\0b", "../r/f",
        ] {
            assert!(
                matches!(place.get(path), Err(FileError::BadPath { .. })),
                "{path:?}"
            );
        }
        let error = place.get("x/f").expect_err("no such root").to_string();
        assert_eq!(error, "no root is called \"x\"; there are: r");
        // A write to a link's name replaces the link, not what it points to.
        place.put("r/lf", b"new").expect("replaced");
        assert_eq!(
            fs::read(place.dir.path().join("outside/secret")).expect("there"),
            SECRET
        );
        assert_eq!(place.get("r/lf").expect("a file now"), b"new");
    }
}

#[test]
fn opener_itself_refuses_escapes() {
    for opener in BOTH {
        let place = TestRoots::new(opener);
        let root = File::open(place.root()).expect("a root");
        for name in ["..", "../outside", "/", "abs", "rel"] {
            assert!(opener.dir(root.as_fd(), name).is_err(), "{name} by {opener:?}");
        }
        for name in ["../outside/secret", "lf", "rel/secret", "/etc/passwd"] {
            assert!(opener.read(root.as_fd(), name).is_err(), "{name} by {opener:?}");
        }
    }
}

#[test]
fn only_regular_files_are_read() {
    for opener in BOTH {
        let place = TestRoots::new(opener);
        assert!(
            matches!(place.get("r/d"), Err(FileError::NotAFile { .. })),
            "{opener:?}"
        );
        assert!(matches!(place.get("r/none"), Err(FileError::NotFound { .. })));
        let pipe = place.root().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a pipe");
        assert!(
            matches!(place.get("r/pipe"), Err(FileError::NotAFile { .. })),
            "{opener:?}"
        );
    }
}

#[test]
fn failed_transfer_keeps_old_file_without_leftovers() {
    let place = TestRoots::new(Opener::Openat2);
    let before = names(&place.root());
    let create = |size| IncomingFile::create(&place.roots, "r/f", size).expect("a file");

    let mut short = create(5);
    short.write(0, b"abc").expect("room");
    short.finish(5, sha256(b"abc"), 0o600).expect_err("too short");
    let mut long = create(2);
    long.write(0, b"abc").expect_err("too long");
    drop(long);
    create(5).write(1, b"abc").expect_err("a gap");
    let mut wrong = create(3);
    wrong.write(0, b"abc").expect("room");
    let error = wrong
        .finish(3, [0; 32], 0o600)
        .expect_err("another digest")
        .to_string();
    assert!(error.contains("SHA-256"), "{error}");
    let full = IncomingFile::create(&place.roots, "r/f", u64::MAX / 2)
        .expect_err("no such disk")
        .to_string();
    assert!(full.contains("the disk is full"), "{full}");
    let mut onto_dir = IncomingFile::create(&place.roots, "r/d", 1).expect("a file");
    onto_dir.write(0, b"x").expect("room");
    onto_dir.finish(1, sha256(b"x"), 0o600).expect_err("a directory");

    assert_eq!(names(&place.root()), before);
    assert_eq!(place.get("r/f").expect("the old one"), b"inside");
}

#[test]
fn sweep_removes_leftovers_but_not_live_files() {
    let place = TestRoots::new(Opener::Openat2);
    let left = place.root().join("d/.x.99-0123456789abcdef.part");
    fs::write(&left, b"half").expect("a leftover");
    let mut live = IncomingFile::create(&place.roots, "r/d/y", 1).expect("a file");
    assert_eq!(place.roots.sweep(), 1);
    assert!(!left.exists());
    live.write(0, b"y").expect("room");
    live.finish(1, sha256(b"y"), 0o600).expect("whole");
    assert_eq!(names(&place.root().join("d")), ["y"]);
}

#[test]
fn temp_name_fits_for_names_of_any_length() {
    let place = TestRoots::new(Opener::Openat2);
    let name = "é".repeat(127);
    place.put(&format!("r/{name}"), b"x").expect("fits");
    assert!(place.root().join(name).exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the path, nothing outside the root is read or changed.
    #[test]
    fn no_path_escapes_its_root(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "r", "..", ".", "", "d", "f", "abs", "rel", "lf", "in", "magic", "outside", "secret", "\0", "new", "/",
            ]),
            0..7,
        ),
        prefix in prop::sample::select(vec!["r/", "", "/", "../"]),
        fallback in any::<bool>(),
    ) {
        let place = TestRoots::new(if fallback { Opener::CapStd } else { Opener::Openat2 });
        let path = format!("{prefix}{}", parts.join("/"));
        if let Ok(content) = place.get(&path) {
            prop_assert_ne!(content, SECRET);
        }
        let put = place.put(&path, b"written");
        let outside = place.dir.path().join("outside");
        prop_assert_eq!(names(&outside), ["secret"]);
        prop_assert_eq!(fs::read(outside.join("secret")).expect("there"), SECRET);
        prop_assert_eq!(names(place.dir.path()), ["outside", "root"]);
        if put.is_ok() {
            prop_assert_eq!(place.get(&path).expect("what was written"), b"written");
        }
    }

    /// Any text at all gives an answer, not a panic.
    #[test]
    fn any_path_text_returns_without_panic(path in "\\PC*") {
        let place = TestRoots::new(Opener::Openat2);
        prop_assert!(place.get(&path).is_err() || path == "r/f");
    }
}
