//! What the kernel says of a process: its memory and its time on the processors.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Resident memory of a process, in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All of it.
    pub rss: u64,
    /// What belongs to the process alone: heap and stacks.
    pub anon: u64,
    /// What comes from files: the program and its libraries, shared by all that run it.
    pub file: u64,
}

/// The memory of process `pid`.
///
/// # Errors
/// If it is gone.
pub fn memory_of(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.with_context(|| format!("{path} has no {name}"))?.parse()?)
    };
    Ok(Memory {
        rss: field("VmRSS:")?,
        anon: field("RssAnon:")?,
        file: field("RssFile:")?,
    })
}

/// How long the living threads of this process have been on a processor.
///
/// # Errors
/// If the kernel keeps no account.
pub fn cpu_time() -> anyhow::Result<Duration> {
    cpu_time_of("self")
}

/// The same for the process that `/proc` knows by that name.
///
/// # Errors
/// If it is gone.
pub fn cpu_time_of(process: &str) -> anyhow::Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        sum += thread_cpu_time(&thread?.path().join("schedstat"))?;
    }
    Ok(sum)
}

fn thread_cpu_time(path: &Path) -> anyhow::Result<Duration> {
    let text = std::fs::read_to_string(path)?;
    let nanos = text.split_whitespace().next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// Lets this process and its children open as many files as the machine allows: a thousand links are more than the
/// usual 1,024 descriptors.
///
/// # Errors
/// If the kernel refuses.
pub fn raise_file_limit() -> anyhow::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")
}
