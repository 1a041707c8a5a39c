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

/// An example of the shared crate, built with the running test's profile.
///
/// # Panics
/// If the examples do not build.
pub fn example(name: &str) -> PathBuf {
    static ONCE: OnceLock<PathBuf> = OnceLock::new();
    let folder = ONCE.get_or_init(|| {
        let profile = profile_dir();
        build(&profile, &["--package", "swarm-shared", "--examples"]);
        profile.join("examples")
    });
    folder.join(name)
}

/// target/PROFILE, where the running test was built.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    // target/PROFILE/deps/TEST, or target/PROFILE/BENCH
    let profile = test.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
    profile.expect("a test lies in a profile's directory").to_owned()
}

fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this package is a member of a workspace")
}

fn find_or_build() -> Binaries {
    let profile = profile_dir();
    let found = Binaries {
        node: profile.join("swarm-node"),
        station: profile.join("ground-station"),
    };
    let root = workspace_root();
    let newest = newest_source(root);
    let fresh = |binary: &Path| modified(binary).is_some_and(|built| Some(built) >= newest);
    if !(fresh(&found.node) && fresh(&found.station)) {
        let node = ["--package", "swarm-node", "--bin", "swarm-node"];
        let station = ["--package", "ground-station", "--bin", "ground-station"];
        build(&profile, &[node, station].concat());
    }
    for binary in [&found.node, &found.station] {
        assert!(binary.is_file(), "{} was not built", binary.display());
    }
    found
}

fn build(profile: &Path, what: &[&str]) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = profile.parent().expect("a profile lies in a target directory");
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace_root())
        .args(["build", "--quiet"])
        .args(what)
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
