//! A station that follows a script, and the program run against it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use ground_station::control::server::ControlServer;
use ground_station::store::lock::StateLock;
use swarm_shared::api::{Event, NodeRef, Request};
use swarm_shared::client::{Fleet, RequestEnvelope};
use swarm_shared::proto::id::{NodeName, PeerId};
use tokio_util::sync::CancellationToken;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_ground-station");

/// How a run of the program ended.
pub(crate) struct ProgramOutput {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl ProgramOutput {
    /// The output with the time that the last line measures taken out.
    pub(crate) fn stdout_without_times(&self) -> String {
        let (before, _) = self.stdout.rsplit_once(" in ").expect("a summary");
        format!("{before} in TIME")
    }
}

/// The program with an empty environment, so that nobody's settings change a test.
pub(crate) fn command(state_dir: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .env_clear()
        .env("GROUND_STATION_STATE_DIR", state_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Waits for the end; the state directory is called `DIR` in what was printed.
pub(crate) fn wait_for_output(child: Child, state_dir: &Path) -> ProgramOutput {
    let output = child.wait_with_output().expect("ends");
    let dir = state_dir.to_str().expect("text");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(dir, "DIR");
    ProgramOutput {
        status: output.status.code().expect("no signal ended it"),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

/// Node `drone-NN`.
pub(crate) fn target(number: u8) -> NodeRef {
    NodeRef {
        node: NodeName::parse(&format!("drone-{number:02}")).expect("a name"),
        id: PeerId([number; 32]),
    }
}

/// Answers every request with the same script; ends when dropped.
pub(crate) struct ScriptedStation {
    dir: tempfile::TempDir,
    received: Arc<(Mutex<Vec<Request>>, Condvar)>,
    shutdown: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ScriptedStation {
    pub(crate) fn start(script: impl Fn(&Request) -> Vec<Event> + Send + 'static) -> Self {
        Self::start_with(script, false)
    }

    /// After the script it says nothing more and does not end.
    pub(crate) fn start_hanging(script: impl Fn(&Request) -> Vec<Event> + Send + 'static) -> Self {
        Self::start_with(script, true)
    }

    fn start_with(script: impl Fn(&Request) -> Vec<Event> + Send + 'static, hang: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = StateLock::try_acquire(dir.path(), "script").expect("free");
        let received: Arc<(Mutex<Vec<Request>>, Condvar)> = Arc::default();
        let shutdown = CancellationToken::new();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (received, shutdown) = (Arc::clone(&received), shutdown.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async move {
                    let server = ControlServer::bind(&lock).expect("binds");
                    ready.send(()).expect("awaited");
                    let (fleet, mut calls) = Fleet::local();
                    let answers = async {
                        while let Some(RequestEnvelope { request, events, .. }) = calls.recv().await {
                            let reply = script(&request);
                            received.0.lock().expect("sound").push(request);
                            received.1.notify_all();
                            for event in reply {
                                // A program that went away has had enough.
                                events.send(event).await.ok();
                            }
                            if hang {
                                events.closed().await;
                            }
                        }
                    };
                    tokio::join!(server.serve(fleet, shutdown), answers);
                });
            }
        });
        started.recv().expect("started");
        Self {
            dir,
            received,
            shutdown,
            thread: Some(thread),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> ProgramOutput {
        wait_for_output(
            command(self.dir()).args(arguments).spawn().expect("starts"),
            self.dir(),
        )
    }

    /// What was asked, as JSON lines.
    pub(crate) fn requests(&self) -> Vec<String> {
        let asked = self.received.0.lock().expect("sound");
        asked
            .iter()
            .map(|request| serde_json::to_string(request).expect("JSON"))
            .collect()
    }

    pub(crate) fn wait_for_request(&self) {
        let asked = self.received.0.lock().expect("sound");
        drop(
            self.received
                .1
                .wait_while(asked, |asked| asked.is_empty())
                .expect("sound"),
        );
    }
}

impl Drop for ScriptedStation {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking());
        }
    }
}
