//! One large file from a real station to a real node over TLS, hashed on both sides.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::ensure;
use swarm_shared::api::{ActRequest, FileToSend, FilesToSend};
use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;
use tempfile::TempDir;

use super::fanout::count_done;
use super::real_station::RealStation;
use super::{Samples, Table, crypto};

const MIB: u64 = 1024 * 1024;

/// Sends a file of `mib` MiB, `runs` times, from `source` to a directory below `dest`.
///
/// # Errors
/// If it does not arrive.
pub async fn run(mib: u64, runs: usize, source: &Path, dests: &[std::path::PathBuf]) -> anyhow::Result<()> {
    let mut table = Table::new();
    let from = TempDir::with_prefix_in("measure-", source)?;
    let path = from.path().join("film");
    write_random(&path, mib)?;
    for dest in dests {
        let station = RealStation::start().await?;
        let to = TempDir::with_prefix_in("measure-", dest)?;
        let roots = format!("[files]\nroots = {{ films = {:?} }}\n", to.path());
        let _node = station.node("drone-1", &roots).await?;
        let mut rate = Samples::default();
        for run in 0..=runs {
            let request = ActRequest::SendFiles {
                selector: Selector::all(),
                files: FilesToSend::Same {
                    files: vec![FileToSend {
                        source: path.clone(),
                        dest: "films/film".to_owned(),
                    }],
                },
                ttl_ms: 30_000,
                timeout_ms: 60_000,
            };
            let started = clock::now();
            let done = count_done(&station.fleet, request).await?;
            let took = clock::since(started);
            ensure!(done == 1, "the file did not arrive");
            // The first opens the connection for files and fills the page cache.
            if run > 0 {
                rate.add(mib as f64 / took.as_secs_f64());
            }
            std::fs::remove_file(to.path().join("film"))?;
        }
        table.add_row(format!("{mib} MiB to {}", dest.display()), "MiB/s", &rate);
    }
    crypto::speeds(&mut table, runs)?;
    Ok(table.print()?)
}

/// A file of so many MiB that nothing makes smaller.
pub(super) fn write_random(path: &Path, mib: u64) -> anyhow::Result<()> {
    let mut block = vec![0; usize::try_from(MIB)?];
    File::open("/dev/urandom")?.read_exact(&mut block)?;
    let mut file = File::create(path)?;
    for number in 0..mib {
        block[..8].copy_from_slice(&number.to_be_bytes());
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}
