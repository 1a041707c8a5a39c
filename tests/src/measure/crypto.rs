//! How fast this machine hashes and encrypts, on one core, with the library that the product uses.

use std::time::Duration;

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{Context, SHA256};
use swarm_shared::net::clock;

use super::{Samples, Table};

/// As files are hashed.
const CHUNK_BYTES: usize = 256 * 1024;
/// As TLS encrypts.
const RECORD_BYTES: usize = 16 * 1024;
/// How long one run takes.
const RUN: Duration = Duration::from_millis(500);
const MIB: f64 = 1024.0 * 1024.0;

/// Adds both speeds to a table.
///
/// # Errors
/// Never in practice: if the key is refused.
pub fn speeds(table: &mut Table, runs: usize) -> anyhow::Result<()> {
    let chunk = vec![0x5a; CHUNK_BYTES];
    let mut hash = Context::new(&SHA256);
    let sha = repeat(runs, CHUNK_BYTES, || {
        hash.update(&chunk);
        Ok(())
    })?;
    table.add_row("SHA-256 alone, one core", "MiB/s", &sha);
    let key = UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(|_unspecified| anyhow::anyhow!("no key"))?;
    let key = LessSafeKey::new(key);
    let mut record = vec![0x5a; RECORD_BYTES];
    let gcm = repeat(runs, RECORD_BYTES, || {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.seal_in_place_separate_tag(nonce, Aad::empty(), &mut record)
            .map(drop)
            .map_err(|_unspecified| anyhow::anyhow!("not sealed"))
    })?;
    table.add_row("AES-128-GCM alone, one core", "MiB/s", &gcm);
    Ok(())
}

fn repeat(
    runs: usize,
    bytes: usize,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for _ in 0..runs {
        let (started, mut done) = (clock::now(), 0_usize);
        while clock::since(started) < RUN {
            work()?;
            done += bytes;
        }
        samples.add(done as f64 / MIB / clock::since(started).as_secs_f64());
    }
    Ok(samples)
}
