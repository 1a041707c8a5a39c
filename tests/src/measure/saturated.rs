//! The delay of commands on a narrow link that a file keeps busy.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use swarm_shared::api::{ActRequest, Event, FileToSend, FilesToSend};
use swarm_shared::client::control::CONTROL_SOCKET;
use swarm_shared::client::{EventStream, Fleet};
use swarm_shared::net::clock;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::Selector;
use tokio::time::sleep;

use super::fanout::{count_done, ping_request};
use super::file::write_random;
use super::stop::{release_request, stop_request};
use super::{Samples, Table};
use crate::fleet::{Host, Invite, TestDir};
use crate::lab::Lab;

/// Between two commands: they must not be the load themselves.
const PAUSE: Duration = Duration::from_millis(20);
/// Between a release and the next stop.
const STOP_PAUSE: Duration = Duration::from_millis(400);
/// Commands over the empty link, to compare with.
const QUIET_RUNS: usize = 100;
/// How long the file has the link before its steady state is measured.
const SETTLE: Duration = Duration::from_secs(3);
/// Longer than any measurement.
const TTL_MS: u64 = 3_600_000;
const MIB: f64 = 1024.0 * 1024.0;

/// The direction of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the station to the node.
    Send,
    /// From the node to the station.
    Fetch,
}

/// Measures on a link of `rate` with a `queue`, while a file of `mib` MiB is on its way: commands for so many seconds,
/// then so many emergency stops, each with its release. Only links carry the stops: there are no datagrams.
///
/// # Errors
/// If there is no laboratory, or a command or the file does not arrive.
pub async fn run(
    rate: &str,
    queue: &str,
    direction: Direction,
    seconds: u64,
    stops: usize,
    mib: u64,
) -> anyhow::Result<()> {
    let lab = Lab::new(3).map_err(|why| anyhow::anyhow!("no laboratory: {why}"))?;
    let field = TestDir::new();
    let mut station = field.station("st", Host::in_lab(&lab, 0));
    let mut node = field.node("n1", Host::in_lab(&lab, 1));
    station.serve();
    let code = station.invite(&Invite::nodes(1));
    node.start(&["--join", &code]);
    station.wait_online(1);
    let fleet = Fleet::remote(station.state_dir.join(CONTROL_SOCKET));
    lab.route_through_bottleneck([0, 1], 2, rate, queue);

    let mut table = Table::new();
    let mut quiet = Samples::default();
    for _run in 0..QUIET_RUNS {
        quiet.add(round_trip(&fleet).await?);
        sleep(PAUSE).await;
    }
    table.add_row("a command over the empty link", "ms", &quiet);

    let request = match direction {
        Direction::Send => {
            let source = field.path().join("film");
            write_random(&source, mib)?;
            ActRequest::SendFiles {
                selector: Selector::all(),
                files: FilesToSend::Same {
                    files: vec![FileToSend {
                        source,
                        dest: "files/film".to_owned(),
                    }],
                },
                ttl_ms: TTL_MS,
                timeout_ms: TTL_MS,
            }
        }
        Direction::Fetch => {
            write_random(&node.files_root.join("film"), mib)?;
            ActRequest::Fetch {
                selector: Selector::all(),
                path: "files/film".to_owned(),
                dir: field.dir("fetched"),
                timeout_ms: TTL_MS,
            }
        }
    };
    let mut moving = fleet.perform(request).await;
    let mut file = TransferProgress::default();
    let began = clock::now();
    let (mut first, mut steady) = (Samples::default(), Samples::default());
    while clock::since(began) < Duration::from_secs(seconds) {
        let took = round_trip(&fleet).await?;
        ensure!(
            file.update(&mut moving).await?,
            "the transfer ended too soon: use a larger file"
        );
        let samples = if clock::since(began) < SETTLE {
            &mut first
        } else {
            &mut steady
        };
        samples.add(took);
        sleep(PAUSE).await;
    }
    table.add_row("  while a file begins, its first 3 s", "ms", &first);
    table.add_row("  while it keeps the link busy", "ms", &steady);
    let (mut stopped, mut latched) = (Samples::default(), Samples::default());
    for _run in 0..stops {
        let times = stop_and_release(&fleet).await?;
        ensure!(
            file.update(&mut moving).await?,
            "the transfer ended too soon: use a larger file"
        );
        stopped.add(times[0]);
        latched.add(times[1]);
        sleep(STOP_PAUSE).await;
    }
    table.add_row("an emergency stop meanwhile, until its report", "ms", &stopped);
    table.add_row("  until the report that it is on disk", "ms", &latched);
    let mut speed = Samples::default();
    speed.add(file.mib_per_second().context("the file did not move")?);
    table.add_row("the file meanwhile", "MiB/s", &speed);
    Ok(table.print()?)
}

/// In milliseconds, through the station's whole engine.
async fn round_trip(fleet: &Fleet) -> anyhow::Result<f64> {
    let started = clock::now();
    let done = count_done(fleet, ping_request()).await?;
    ensure!(done == 1, "the node did not answer");
    Ok(clock::since(started).as_secs_f64() * 1_000.0)
}

/// In milliseconds, until the node is stopped and until its journal has it.
async fn stop_and_release(fleet: &Fleet) -> anyhow::Result<[f64; 2]> {
    let started = clock::now();
    let mut events = fleet.perform(stop_request()).await;
    let (mut stopped, mut latched) = (None, None);
    while let Some(event) = events.recv().await {
        let ms = clock::since(started).as_secs_f64() * 1_000.0;
        if let Event::Acknowledged { .. } = event {
            stopped = Some(ms);
        } else if let Event::Delivery(delivery) = event {
            ensure!(delivery.state == Outcome::Done, "not stopped: {delivery:?}");
            latched = Some(ms);
        } else if let Event::Failed { message, .. } = event {
            anyhow::bail!(message);
        }
    }
    let latched = latched.context("the node did not confirm the stop")?;
    ensure!(
        count_done(fleet, release_request()).await? == 1,
        "the node is not released"
    );
    Ok([stopped.unwrap_or(latched), latched])
}

/// Progress of the file.
#[derive(Default)]
struct TransferProgress {
    /// The first report, which is the point from which its speed is counted, and the last.
    reports: Option<[(Instant, u64); 2]>,
}

impl TransferProgress {
    /// Reads the reports that have come; returns whether the transfer goes on.
    async fn update(&mut self, events: &mut EventStream) -> anyhow::Result<bool> {
        while !events.is_empty() {
            match events.next().await? {
                Some(Event::Progress { bytes, .. }) => {
                    let report = (clock::now(), bytes);
                    let first = self.reports.map_or(report, |[first, _]| first);
                    self.reports = Some([first, report]);
                }
                None | Some(Event::Delivery(_)) => return Ok(false),
                Some(_) => {}
            }
        }
        Ok(true)
    }

    fn mib_per_second(&self) -> Option<f64> {
        let [(began, from), (ended, to)] = self.reports?;
        let took = ended.saturating_duration_since(began).as_secs_f64();
        (took > 0.0).then(|| (to - from) as f64 / MIB / took)
    }
}
