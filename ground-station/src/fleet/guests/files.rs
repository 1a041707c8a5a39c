//! Files to and from guests: whole, in memory, because their systems know no parts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::json;
use swarm_shared::net::roots::{FileError, Incoming, Roots};
use swarm_shared::proto::hex;
use swarm_shared::proto::outcome::Reply;

use super::work::Copy;

/// The name of the only root of a fetch: the directory that the operator named.
const ROOT: &str = "dir";
/// Permissions of a copy: its own are not told.
const MODE: u32 = 0o644;

/// Reads a file of at most so many bytes.
pub(super) async fn read(path: PathBuf, bytes_max: u64) -> Result<Bytes, Reply> {
    let reading = tokio::task::spawn_blocking(move || read_whole(&path, bytes_max));
    match reading.await {
        Ok(read) => read.map_err(Reply::failed),
        Err(error) => Err(Reply::failed(error.to_string())),
    }
}

fn read_whole(path: &Path, bytes_max: u64) -> Result<Bytes, String> {
    let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    let mut content = Vec::new();
    // One byte more shows that it is too long, however it has grown.
    let mut limited = file.take(bytes_max.saturating_add(1));
    if meta.len() <= bytes_max {
        limited.read_to_end(&mut content).map_err(unreadable)?;
    }
    if meta.len() > bytes_max || content.len() as u64 > bytes_max {
        return Err(format!(
            "{} is longer than the {bytes_max} bytes that this drone is sent; see `file_bytes` of its door",
            path.display()
        ));
    }
    Ok(content.into())
}

/// The directory of a fetch, made if need be.
pub(super) async fn open_dir(dir: PathBuf) -> Result<Roots, String> {
    let made = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        Ok(Roots::new(BTreeMap::from([(ROOT.to_owned(), dir)])))
    });
    made.await.map_err(|error| error.to_string())?
}

/// Writes a fetched file below the operator's directory, whole or not at all.
pub(super) async fn write(content: Bytes, copy: Copy) -> Reply {
    let writing = tokio::task::spawn_blocking(move || {
        let digest = ring::digest::digest(&ring::digest::SHA256, &content);
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest.as_ref());
        let size = content.len() as u64;
        let mut file = Incoming::create(&copy.roots, &format!("{ROOT}/{}", copy.name), size)?;
        file.write(0, &content)?;
        file.finish(size, sha256, MODE)?;
        let path = copy.dir.join(&copy.name).display().to_string();
        Ok::<_, FileError>(json!({ "size": size, "sha256": hex::encode(&sha256), "path": path }))
    });
    match writing.await {
        Ok(Ok(value)) => Reply::done(value),
        Ok(Err(error)) => Reply::failed(format!("on this machine: {error}")),
        Err(error) => Reply::failed(error.to_string()),
    }
}
