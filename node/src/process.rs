//! Runs programs: each in its own process group, with a time-out and a cap on its output.
//!
//! No shell is used: the program and each argument are passed separately. Standard input is empty; standard output
//! and standard error share one pipe, which keeps their order.
//!
//! | phase | until | then |
//! |---|---|---|
//! | running | the program ends | draining |
//! | running | the time-out, or cancelled | `SIGTERM` to the group: terminating |
//! | terminating | the program has ended and the output is closed | the group is killed, done |
//! | terminating | [`TERM_GRACE`] | `SIGKILL` to the group: draining |
//! | draining | the output is closed, or [`DRAIN_GRACE`] | processes that still hold the output are killed with the group, done |
//!
//! Dropping the future kills the group at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use swarm_shared::net::clock;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

/// Output that is kept of a program, in bytes: the first half and the last half of the limit.
pub const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Time from `SIGTERM` to `SIGKILL`.
pub const TERM_GRACE: Duration = Duration::from_secs(2);
/// Time for which output is read after the program has ended, if another process holds it open.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// Environment variables of the daemon that a program must not get: systemd's sockets and the invitation code.
const REMOVED_VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "SWARM_NODE_JOIN",
];

/// Why a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It ended by itself.
    Exited,
    /// It was killed at its time-out.
    TimedOut,
    /// It was killed because its command was cancelled.
    Cancelled,
}

/// The end of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Why it ended.
    pub reason: EndReason,
    /// Its exit status; 128 plus the signal's number if a signal ended it.
    pub exit_code: i32,
    /// Its output, capped at [`OUTPUT_BYTES_MAX`]; bytes that are not UTF-8 are replaced.
    pub output: String,
}

/// Use of standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stderr {
    /// It is part of the output.
    Merged,
    /// It is dropped, for programs whose output is parsed.
    Discarded,
}

/// The program could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program:?}: {source}")]
pub struct StartError {
    program: String,
    source: io::Error,
}

/// Runs `argv` to its end.
///
/// # Errors
/// [`StartError`] if it cannot be started; every other end is [`Finished`].
pub async fn run(
    argv: &[String],
    stderr: Stderr,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Result<Finished, StartError> {
    let failed = |source| StartError {
        program: argv.first().cloned().unwrap_or_default(),
        source,
    };
    let mut running = RunningProgram::start(argv, stderr).map_err(failed)?;
    running.wait(timeout, cancel).await.map_err(failed)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Terminating,
    Draining,
}

struct RunningProgram {
    child: tokio::process::Child,
    group: ProcessGroup,
    pipe: pipe::Receiver,
    output: OutputBuffer,
}

impl RunningProgram {
    fn start(argv: &[String], stderr: Stderr) -> io::Result<Self> {
        let [program, arguments @ ..] = argv else {
            return Err(io::Error::other("the command is empty"));
        };
        let (reader, writer) = io::pipe()?;
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).stdin(Stdio::null()).process_group(0);
        match stderr {
            Stderr::Merged => command.stderr(writer.try_clone()?),
            Stderr::Discarded => command.stderr(Stdio::null()),
        };
        command.stdout(writer);
        for name in REMOVED_VARIABLES {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        // The command holds our copies of the pipe's writing end, so that the output would never close.
        drop(command);
        let group = ProcessGroup(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        Ok(Self {
            child,
            group,
            pipe: pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?,
            output: OutputBuffer::default(),
        })
    }

    async fn wait(&mut self, timeout: Duration, cancel: &CancellationToken) -> io::Result<Finished> {
        let timer = tokio::time::sleep(timeout);
        tokio::pin!(timer);
        let after = |timer: std::pin::Pin<&mut tokio::time::Sleep>, time: Duration| {
            timer.reset(clock::to_tokio_instant(clock::now() + time));
        };
        let mut phase = Phase::Running;
        let mut reason = EndReason::Exited;
        let mut status: Option<ExitStatus> = None;
        let mut open = true;
        let mut buffer = Vec::with_capacity(16 * 1024);
        while status.is_none() || open {
            tokio::select! {
                read = self.pipe.read_buf(&mut buffer), if open => {
                    open = read? > 0;
                    self.output.push(&buffer);
                    buffer.clear();
                }
                ended = self.child.wait(), if status.is_none() => {
                    status = Some(ended?);
                    if phase == Phase::Running {
                        phase = Phase::Draining;
                        after(timer.as_mut(), DRAIN_GRACE);
                    }
                }
                () = cancel.cancelled(), if phase == Phase::Running => {
                    (phase, reason) = (Phase::Terminating, EndReason::Cancelled);
                    self.group.signal(Signal::TERM);
                    after(timer.as_mut(), TERM_GRACE);
                }
                () = timer.as_mut() => match phase {
                    Phase::Running => {
                        (phase, reason) = (Phase::Terminating, EndReason::TimedOut);
                        self.group.signal(Signal::TERM);
                        after(timer.as_mut(), TERM_GRACE);
                    }
                    Phase::Terminating => {
                        phase = Phase::Draining;
                        self.group.signal(Signal::KILL);
                        after(timer.as_mut(), DRAIN_GRACE);
                    }
                    Phase::Draining if status.is_some() => break,
                    // Killed and not ended: it is blocked in the kernel, perhaps by a faulty disk.
                    Phase::Draining => after(timer.as_mut(), DRAIN_GRACE),
                },
            }
        }
        // A background process that does not hold the output of a successful program is left running.
        if reason != EndReason::Exited || open {
            self.group.signal(Signal::KILL);
        }
        self.group.0 = None;
        let status = status.unwrap_or_default();
        Ok(Finished {
            reason,
            exit_code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            output: std::mem::take(&mut self.output).into_text(),
        })
    }
}

/// A process group that is killed when its owner is dropped.
struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0 {
            // The group may have ended by itself.
            let _gone = kill_process_group(pid, signal);
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The first and the last part of an output.
#[derive(Default)]
struct OutputBuffer {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped_bytes: u64,
}

impl OutputBuffer {
    const HALF_BYTES: usize = OUTPUT_BYTES_MAX / 2;

    fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(Self::HALF_BYTES - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(Self::HALF_BYTES);
        self.tail.drain(..over);
        self.dropped_bytes += over as u64;
    }

    fn into_text(mut self) -> String {
        if self.dropped_bytes > 0 {
            let note = format!("\n[… {} bytes left out …]\n", self.dropped_bytes);
            self.head.extend_from_slice(note.as_bytes());
        }
        self.head.extend(self.tail);
        match String::from_utf8(self.head) {
            Ok(text) => text,
            Err(other) => String::from_utf8_lossy(other.as_bytes()).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, timeout_ms: u64) -> Finished {
        let argv = ["sh", "-c", script].map(str::to_owned);
        run(
            &argv,
            Stderr::Merged,
            Duration::from_millis(timeout_ms),
            &CancellationToken::new(),
        )
        .await
        .expect("sh starts")
    }

    /// Whether a process exists and is not a zombie.
    fn is_alive(pid: &str) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
    }

    async fn wait_until_dead(pid: &str) -> bool {
        for _ in 0..200 {
            if !is_alive(pid) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn output_order_and_exit_status_are_kept() {
        let ran = sh("echo a; echo b >&2; echo c; exit 3", 5000).await;
        assert_eq!(
            (ran.reason, ran.exit_code, ran.output.as_str()),
            (EndReason::Exited, 3, "a\nb\nc\n")
        );
        assert_eq!(sh("kill -9 $$", 5000).await.exit_code, 137);
    }

    #[tokio::test]
    async fn a_missing_program_is_named_in_the_error() {
        let argv = ["/no/such/program".to_owned()];
        let error = run(
            &argv,
            Stderr::Merged,
            Duration::from_secs(1),
            &CancellationToken::new(),
        )
        .await;
        let error = error.expect_err("nothing to start").to_string();
        assert!(
            error.contains("/no/such/program") && error.contains("No such file"),
            "{error}"
        );
        run(
            &[],
            Stderr::Merged,
            Duration::from_secs(1),
            &CancellationToken::new(),
        )
        .await
        .expect_err("nothing to start");
    }

    #[tokio::test]
    async fn a_timeout_kills_the_whole_process_group() {
        let start = clock::now();
        let ran = sh("sleep 60 & echo $!; sh -c 'sleep 60' & sleep 60", 300).await;
        assert_eq!((ran.reason, ran.exit_code), (EndReason::TimedOut, 128 + 15));
        assert!(clock::now() - start < Duration::from_secs(2));
        assert!(
            wait_until_dead(&ran.output).await,
            "the grandchild {} lives",
            ran.output
        );
    }

    #[tokio::test]
    async fn a_program_that_ignores_sigterm_is_killed() {
        let ran = sh("trap '' TERM; echo $$; while :; do sleep 0.1; done", 200).await;
        assert_eq!((ran.reason, ran.exit_code), (EndReason::TimedOut, 128 + 9));
        assert!(wait_until_dead(&ran.output).await);
    }

    #[tokio::test]
    async fn an_open_pipe_does_not_delay_the_result() {
        let ran = sh("sleep 60 & echo $!", 10_000).await;
        assert_eq!((ran.reason, ran.exit_code), (EndReason::Exited, 0));
        assert!(wait_until_dead(&ran.output).await, "it is killed with its group");
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_group() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", file.display());
        let early = tokio::time::timeout(Duration::from_millis(400), sh(&script, 60_000)).await;
        assert!(early.is_err());
        let pid = std::fs::read_to_string(file).expect("written");
        assert!(wait_until_dead(&pid).await);
    }

    #[tokio::test]
    async fn cancelling_ends_the_program() {
        let cancel = CancellationToken::new();
        let argv = ["sleep", "60"].map(str::to_owned);
        let run = run(&argv, Stderr::Merged, Duration::from_secs(60), &cancel);
        let (ran, ()) = tokio::join!(run, async { cancel.cancel() });
        assert_eq!(ran.expect("sleep starts").reason, EndReason::Cancelled);
    }

    #[tokio::test]
    async fn long_output_keeps_both_ends() {
        let ran = sh(
            "echo first; head -c 300000 /dev/zero | tr '\\0' x; echo; echo last",
            10_000,
        )
        .await;
        assert!(ran.output.starts_with("first\nxxx") && ran.output.ends_with("x\nlast\n"));
        assert!(ran.output.contains("bytes left out"));
        assert!(ran.output.len() < OUTPUT_BYTES_MAX + 64);
    }
}
