//! Finds our own programs, and builds them if needed: Cargo passes their paths only to tests of their own package.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// Path of `swarm-node`.
    pub node: PathBuf,
    /// Path of `ground-station`.
    pub station: PathBuf,
}

/// The programs beside the running test, built with its profile if they are absent or older than their sources.
///
/// # Panics
/// If they do not build.
pub fn binaries() -> &'static Binaries {
    static ONCE: OnceLock<Binaries> = OnceLock::new();
    ONCE.get_or_init(find_or_build)
}

fn find_or_build() -> Binaries {
    let test = std::env::current_exe().expect("a running test has a path");
    // target/PROFILE/deps/TEST, or target/PROFILE/BENCH
    let profile = test
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps"))
        .expect("a test lies in a profile's directory");
    let found = Binaries {
        node: profile.join("swarm-node"),
        station: profile.join("ground-station"),
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package is a member of a workspace");
    let newest = newest_source(root);
    let fresh = |binary: &Path| modified(binary).is_some_and(|built| Some(built) >= newest);
    if !(fresh(&found.node) && fresh(&found.station)) {
        build(root, profile);
    }
    for binary in [&found.node, &found.station] {
        assert!(binary.is_file(), "{} was not built", binary.display());
    }
    found
}

fn build(root: &Path, profile: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = profile.parent().expect("a profile lies in a target directory");
    let mut command = Command::new(cargo);
    command
        .current_dir(root)
        .args([
            "build",
            "--quiet",
            "--package",
            "swarm-node",
            "--bin",
            "swarm-node",
        ])
        .args(["--package", "ground-station", "--bin", "ground-station"])
        .arg("--target-dir")
        .arg(target);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().expect("cargo runs");
    assert!(
        status.success(),
        "the programs under test do not build: {command:?}"
    );
}

fn newest_source(root: &Path) -> Option<SystemTime> {
    let mut newest = modified(&root.join("Cargo.lock")).max(modified(&root.join("Cargo.toml")));
    let mut left: Vec<PathBuf> = ["shared", "node", "ground-station"]
        .iter()
        .flat_map(|package| {
            [
                root.join(package).join("src"),
                root.join(package).join("Cargo.toml"),
            ]
        })
        .collect();
    while let Some(path) = left.pop() {
        newest = newest.max(modified(&path));
        if let Ok(entries) = std::fs::read_dir(&path) {
            left.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
    }
    newest
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}
