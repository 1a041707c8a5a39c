//! Files between the node's roots and the server: one at a time, since each is in memory as a whole.

use std::time::Instant;

use bytes::Bytes;
use swarm_shared::net::clever_show::{ResponseBody, files};
use swarm_shared::net::roots::FileError;
use swarm_shared::proto::foreign::clever_show::FILE_TRANSFER;
use swarm_shared::proto::message::Arguments;

use super::CleverShowGateway;
use super::file_queue::PushedFile;

impl CleverShowGateway {
    /// Stores a pushed file and logs the result.
    ///
    /// # Errors
    /// Why it is not stored.
    pub(super) async fn store_file(self, file: PushedFile) -> Result<(), String> {
        let PushedFile { what, path, content } = file;
        let result = match content {
            Ok(bytes) => self.save_file(&path, bytes).await,
            Err(reason) => Err(reason),
        };
        let stored = result.as_ref().map(drop).map_err(String::clone);
        self.log.record(self.server(), what, &path, result);
        stored
    }

    async fn save_file(&self, path: &str, bytes: Bytes) -> Result<String, String> {
        self.check_access(FILE_TRANSFER, &Arguments::default())?;
        let (size, max) = (bytes.len(), self.config.file_bytes);
        if size > max {
            return Err(format!("it has {size} bytes, and file_bytes allows {max}"));
        }
        let (roots, path) = (self.roots.clone(), path.to_owned());
        let _alone = self
            .file_lock
            .acquire()
            .await
            .map_err(|closed| closed.to_string())?;
        let written = run_blocking(move || files::save(&roots, &path, &bytes)).await?;
        Ok(format!("{} bytes written", written.size))
    }

    /// Answers a request that arrived at `asked` with a file.
    pub(super) async fn send_file(&self, id: &str, path: &str, asked: Instant) -> Result<String, String> {
        let (roots, path, most) = (self.roots.clone(), path.to_owned(), self.config.file_bytes);
        let _alone = self
            .file_lock
            .acquire()
            .await
            .map_err(|closed| closed.to_string())?;
        let bytes = run_blocking(move || files::read(&roots, &path, most)).await?;
        let size = bytes.len();
        self.respond((FILE_TRANSFER, id), ResponseBody::File(bytes), asked)?;
        Ok(format!("{size} bytes"))
    }
}
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(panicked) => Err(panicked.to_string()),
    }
}
