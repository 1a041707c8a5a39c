//! Guards the direction of dependencies: `node`, `ground-station` → `shared::net` → `shared::proto`.
//!
//! If this fails, move the code to the layer where it belongs; do not change the list of words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What `proto` must not use, and which layer provides it.
const BANNED_IN_PROTO: &[(&str, &str)] = &[
    ("tokio::", "net has the tasks and the sockets"),
    ("crate::net", "net builds on proto, never the other way round"),
    ("std::net::Tcp", "net has the sockets"),
    ("std::net::Udp", "net has the sockets"),
    ("std::os::unix::net", "net has the sockets"),
    ("socket2", "net has the sockets"),
    ("rustix", "net makes the system calls"),
    ("mdns_sd", "net has mDNS"),
    ("if_addrs", "net has the interfaces"),
    ("rustls", "net has TLS"),
    ("std::fs", "net has the files"),
    ("std::env", "configuration comes in as arguments"),
    ("std::process", "the node runs programs"),
    ("std::thread", "nothing in proto waits"),
    ("Instant::now", "time comes in as an argument"),
    ("SystemTime", "time comes in as an argument"),
    ("UNIX_EPOCH", "time comes in as an argument"),
    (".elapsed()", "it reads the clock: time comes in as an argument"),
    ("SystemRandom", "randomness comes in as an argument"),
    ("rand::", "randomness comes in as an argument"),
    ("getrandom", "randomness comes in as an argument"),
    ("HashMap", "its order is random: use BTreeMap"),
    ("HashSet", "its order is random: use BTreeSet"),
    ("println!", "proto returns events, it does not print"),
    ("tracing::", "proto returns events, it does not log"),
];

fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("shared is a member of a workspace")
}

fn source_files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![below.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a readable directory");
            left.extend(entries.map(|entry| entry.expect("a readable entry").path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    assert!(!found.is_empty(), "no sources below {}", below.display());
    found
}

/// The numbered lines of code, without comments and tests: tests may use anything.
fn code_lines(path: &Path) -> Vec<(usize, String)> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if stem == "tests" || stem.ends_with("_tests") {
        return Vec::new();
    }
    let text = std::fs::read_to_string(path).expect("readable source");
    let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..tests]
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number + 1, line.to_owned()))
        .collect()
}

#[test]
fn proto_reads_no_clock_socket_or_file() {
    let mut faults = Vec::new();
    for path in source_files(&workspace_root().join("shared/src/proto")) {
        for (number, line) in code_lines(&path) {
            for (word, why) in BANNED_IN_PROTO {
                if line.contains(word) {
                    faults.push(format!("{}:{number}: {word}: {why}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Folders, what their code must not name, and why not.
const BANNED_IN_FOLDERS: &[(&str, &[&str], &str)] = &[
    (
        "shared/src/api",
        &[
            "tokio",
            "tracing",
            "thiserror",
            "crate::net",
            "crate::client",
            "std::fs",
            "std::io",
        ],
        "requests and events are plain data: serde and proto only",
    ),
    (
        "shared/src/client",
        &["crate::net", "rusqlite", "clap"],
        "a client asks a station; it holds no links",
    ),
    (
        "shared/src/net",
        &["crate::api", "crate::client"],
        "links know nothing of requests",
    ),
    (
        "ground-station/src/store",
        &[
            "crate::engine",
            "crate::gateways",
            "crate::control",
            "crate::view",
            "crate::cli",
        ],
        "the store is below the engine",
    ),
    (
        "ground-station/src/view",
        &[
            "crate::engine",
            "crate::gateways",
            "crate::control",
            "crate::store",
            "crate::cli",
        ],
        "a view turns events into text, and asks nothing",
    ),
    (
        "ground-station/src/engine",
        &["crate::gateways", "crate::view", "crate::cli"],
        "the engine never prints, and knows no gateway",
    ),
    (
        "ground-station/src/control",
        &["crate::gateways", "crate::view", "crate::cli"],
        "the control socket passes requests on",
    ),
    (
        "ground-station/src/gateways",
        &["crate::view", "crate::cli", "crate::control"],
        "gateways ask the fleet, and print nothing",
    ),
];

#[test]
fn folders_depend_downwards_only() {
    let mut faults = Vec::new();
    let folders = BANNED_IN_FOLDERS
        .iter()
        .map(|(folder, words, why)| (workspace_root().join(folder), words, why));
    for (folder, words, why) in folders {
        for path in source_files(&folder) {
            for (number, line) in code_lines(&path) {
                for word in words.iter().filter(|word| line.contains(**word)) {
                    faults.push(format!("{}:{number}: {word}: {why}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn clocks_are_read_in_one_file() {
    let mut faults = Vec::new();
    for package in ["shared", "node", "ground-station"] {
        for path in source_files(&workspace_root().join(package).join("src")) {
            if path.ends_with("net/clock.rs") {
                continue;
            }
            for (number, line) in code_lines(&path) {
                if line.contains("Instant::now()") || line.contains("SystemTime::now()") {
                    faults.push(format!("{}:{number}: ask net::clock", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// A file's module below its crate: `["net", "endpoint", "task"]`; empty for the root.
type ModulePath = Vec<String>;

/// The module of each source file of a package, without tests.
fn modules(package: &str) -> BTreeMap<ModulePath, PathBuf> {
    let root = workspace_root().join(package).join("src");
    let mut modules = BTreeMap::new();
    for file in source_files(&root) {
        let path = file.with_extension("");
        let path = path.strip_prefix(&root).expect("below the root");
        let names = path.iter().map(|name| name.to_str().expect("UTF-8").to_owned());
        let mut module: ModulePath = names.collect();
        if module
            .iter()
            .any(|name| name == "tests" || name.ends_with("_tests"))
        {
            continue;
        }
        let last = module.last().map(String::as_str);
        if matches!(last, Some("mod" | "lib" | "main")) {
            module.pop();
        }
        modules.insert(module, file);
    }
    modules
}

/// The paths of a tree of `use`: `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`.
fn expand_use_tree(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else {
        return vec![tree.to_owned()];
    };
    let branches = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (at, c) in branches.char_indices().chain([(branches.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let branch = expand_use_tree(&branches[start..at]);
                paths.extend(branch.iter().map(|path| format!("{prefix}{path}")));
                start = at + 1;
            }
            _ => {}
        }
    }
    paths
}

/// The modules of the same crate that a module's `use` lines name, except its parents and children.
fn used_modules(module: &ModulePath, modules: &BTreeMap<ModulePath, PathBuf>) -> BTreeSet<ModulePath> {
    let code: String = code_lines(&modules[module])
        .into_iter()
        .map(|(_, line)| line + " ")
        .collect();
    let mut used = BTreeSet::new();
    for statement in code.split(';') {
        let Some((_, tree)) = statement.rsplit_once("use ") else {
            continue;
        };
        let tree: String = tree.split_whitespace().collect();
        for path in expand_use_tree(&tree) {
            let mut names = path.split("::").peekable();
            let mut target = match names.peek() {
                Some(&"crate") => ModulePath::new(),
                Some(&("super" | "self")) => module.clone(),
                _ => continue,
            };
            for name in names {
                match name {
                    "crate" | "self" => {}
                    "super" => drop(target.pop()),
                    name => target.push(name.to_owned()),
                }
            }
            while !modules.contains_key(&target) && target.pop().is_some() {}
            if !target.starts_with(module) && !module.starts_with(&target) {
                used.insert(target);
            }
        }
    }
    used
}

#[test]
fn files_form_no_circles() {
    assert_eq!(
        expand_use_tree("a::{b,c::{d,e},f}"),
        ["a::b", "a::c::d", "a::c::e", "a::f"]
    );
    let mut faults = Vec::new();
    for package in ["shared", "node", "ground-station"] {
        let modules = modules(package);
        let uses = modules
            .keys()
            .map(|module| (module, used_modules(module, &modules)));
        let mut uses: BTreeMap<_, _> = uses.collect();
        // Whatever uses nothing that is left is in no circle.
        while let Some(done) = uses.iter().find(|(_, used)| used.is_empty()) {
            let done = (*done.0).clone();
            uses.remove(&done);
            for used in uses.values_mut() {
                used.remove(&done);
            }
        }
        // Nor is what nothing uses.
        while let Some(unused) = uses
            .keys()
            .find(|module| !uses.values().any(|used| used.contains(**module)))
        {
            let unused = (*unused).clone();
            uses.remove(&unused);
        }
        for (module, used) in uses {
            let used: Vec<String> = used.iter().map(|module| module.join("::")).collect();
            faults.push(format!(
                "{package}: {} uses {}",
                module.join("::"),
                used.join(", ")
            ));
        }
    }
    assert!(
        faults.is_empty(),
        "circles, and what is between two of them:\n{}\n",
        faults.join("\n")
    );
}

/// The dependencies that a package names, of any kind.
fn dependencies(package: &str) -> Vec<String> {
    let text =
        std::fs::read_to_string(workspace_root().join(package).join("Cargo.toml")).expect("a manifest");
    let mut within = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            within = line.contains("dependencies");
            // [dependencies.NAME]
            if let Some((_, name)) = line.trim_end_matches(']').split_once("dependencies.") {
                found.push(name.to_owned());
            }
        } else if within && !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.push(name.trim_matches('"').to_owned());
        }
    }
    assert!(found.len() > 3, "{package} names hardly a dependency: {found:?}");
    found
}

#[test]
fn packages_depend_downwards_only() {
    for (package, forbidden) in [
        ("shared", &["swarm-node", "ground-station", "swarm-tests"][..]),
        ("node", &["ground-station", "swarm-tests", "rusqlite"]),
        ("ground-station", &["swarm-node", "swarm-tests"]),
    ] {
        let names = dependencies(package);
        for name in forbidden {
            assert!(
                !names.iter().any(|n| n == name),
                "{package} must not depend on {name}"
            );
        }
    }
}
