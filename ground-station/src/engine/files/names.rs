//! Names of files: destinations on nodes, fetched copies, and each node's own file.

use std::path::{Path, PathBuf};

use swarm_shared::proto::id::{NodeName, PeerId};

/// A source or a destination that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// DEST or PATH is not below a root.
    #[error(
        "{0:?} is not ROOT/PATH: name one of the roots that nodes configure and a path below it, such as shows/take1.csv"
    )]
    BadPath(String),
    /// The source has no file name.
    #[error("{0:?} has no file name; name a file")]
    NoFileName(PathBuf),
    /// `--per-node`: the directory has no file for a node.
    #[error("no file in {dir:?} is called {node} or {node}.EXT; add one, or exclude the node with !{node}")]
    NoFileForNode {
        /// The node.
        node: NodeName,
        /// The directory.
        dir: PathBuf,
    },
    /// `--per-node`: the directory has two files for a node.
    #[error("{first:?} and {second:?} are both for {node}; keep one of them in {dir:?}")]
    TwoFilesForNode {
        /// The node.
        node: NodeName,
        /// The directory.
        dir: PathBuf,
        /// One of the files.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// The directory cannot be read.
    #[error("cannot read {path:?}: {error}")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
}

/// Checks the form of ROOT/PATH (ROOT alone is good too). Nodes check again, with the kernel's help.
///
/// # Errors
/// [`FilesError::BadPath`].
pub fn check_path(path: &str) -> Result<(), FilesError> {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    let good = trimmed
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.contains('\0');
    if good {
        Ok(())
    } else {
        Err(FilesError::BadPath(path.to_owned()))
    }
}

/// Where `source` goes on a node. `dest` is a directory if it ends in `/`, is a root alone, or takes several files;
/// else it is the file's own path.
///
/// # Errors
/// [`FilesError::BadPath`] or [`FilesError::NoFileName`].
pub fn destination(dest: &str, source: &Path, several: bool) -> Result<String, FilesError> {
    check_path(dest)?;
    if !several && dest.contains('/') && !dest.ends_with('/') {
        return Ok(dest.to_owned());
    }
    let name = source
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| FilesError::NoFileName(source.to_owned()))?;
    Ok(format!("{}/{name}", dest.trim_end_matches('/')))
}

/// The name of the copy of `path` from `node`: `drone-07-flight.log`. Nodes that share a name are told apart by id.
///
/// # Errors
/// [`FilesError::BadPath`] if `path` names a root and no file.
pub fn copy_name(
    node: &NodeName,
    id: &PeerId,
    name_is_unique: bool,
    path: &str,
) -> Result<String, FilesError> {
    check_path(path)?;
    match path.rsplit_once('/') {
        Some((_, file)) if !file.is_empty() && name_is_unique => Ok(format!("{node}-{file}")),
        Some((_, file)) if !file.is_empty() => Ok(format!("{node}-{}-{file}", id.short())),
        Some(_) | None => Err(FilesError::BadPath(path.to_owned())),
    }
}

/// The file of `dir` for `node`: the one with the node's name and any extension or none.
///
/// # Errors
/// None, or two, such files; a directory that cannot be read.
pub fn file_for_node(dir: &Path, node: &NodeName) -> Result<PathBuf, FilesError> {
    let unreadable = |error| FilesError::Unreadable {
        path: dir.to_owned(),
        error,
    };
    let mut found: Option<PathBuf> = None;
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let rest = name.strip_prefix(node.as_str());
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) || !path.is_file() {
            continue;
        }
        if let Some(first) = found {
            let (first, second) = if first < path {
                (first, path)
            } else {
                (path, first)
            };
            return Err(FilesError::TwoFilesForNode {
                node: node.clone(),
                dir: dir.to_owned(),
                first,
                second,
            });
        }
        found = Some(path);
    }
    found.ok_or_else(|| FilesError::NoFileForNode {
        node: node.clone(),
        dir: dir.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_shared::proto::id::PublicKey;

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).expect("a name")
    }

    #[test]
    fn destination_is_a_file_or_a_directory() {
        for (dest, several, path) in [
            ("shows/a.csv", false, "shows/a.csv"),
            ("shows/a", true, "shows/a/take1.csv"),
            ("shows/", false, "shows/take1.csv"),
            ("shows", false, "shows/take1.csv"),
            ("shows/x/", true, "shows/x/take1.csv"),
        ] {
            let found = destination(dest, Path::new("/tmp/take1.csv"), several).expect(dest);
            assert_eq!(found, path);
        }
        for dest in ["", "/etc/passwd", "shows/../x", "shows//x", "a\0b/c", "/"] {
            let error = destination(dest, Path::new("/tmp/x"), false)
                .expect_err(dest)
                .to_string();
            assert!(error.contains("is not ROOT/PATH"), "{error}");
        }
        destination("shows/", Path::new("/tmp/.."), false).expect_err("no name");
    }

    #[test]
    fn fetched_copies_are_named_by_node() {
        let id = PublicKey([1; 32]).id();
        assert_eq!(
            copy_name(&name("d-7"), &id, true, "logs/x/run.log").expect("a copy"),
            "d-7-run.log"
        );
        let twin = copy_name(&name("d-7"), &id, false, "logs/run.log").expect("a copy");
        assert_eq!(twin, format!("d-7-{}-run.log", id.short()));
        copy_name(&name("d-7"), &id, true, "logs").expect_err("a root is no file");
        copy_name(&name("d-7"), &id, true, "logs/").expect_err("a directory is no file");
    }

    #[test]
    fn each_node_finds_its_own_file() {
        let dir = tempfile::tempdir().expect("a directory");
        for file in ["d-7.csv", "d-70.csv", "d-8", "d-9.a", "d-9.b"] {
            std::fs::write(dir.path().join(file), "").expect("a file");
        }
        let found = |node: &str| file_for_node(dir.path(), &name(node));
        assert_eq!(found("d-7").expect("one"), dir.path().join("d-7.csv"));
        assert_eq!(found("d-8").expect("one"), dir.path().join("d-8"));
        assert!(matches!(found("d-9"), Err(FilesError::TwoFilesForNode { .. })));
        assert!(matches!(found("d-1"), Err(FilesError::NoFileForNode { .. })));
        assert!(matches!(
            file_for_node(Path::new("/nonexistent"), &name("x")),
            Err(FilesError::Unreadable { .. })
        ));
    }
}
