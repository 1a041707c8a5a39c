//! Sends a stop by datagrams until the links are up: see [`StopBroadcast`].
//!
//! | state | until |
//! |---|---|
//! | waiting | [`BEGIN_AFTER`], or a station that does not start |
//! | out | the ordinary stop has gone out, or the user gives up |
//! | impossible | the end: the stop needs links, like any other verb |

use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cli::CommonOptions;
use crate::cli::connect::{self, Connection, OpenError};
use crate::cli::screen::{CliError, EXIT_INTERRUPTED, Screen};
use crate::config::Config;
use crate::engine::stop::broadcast::StopBroadcast;
use crate::view::deliveries::DeliveryReport;
use swarm_shared::api::{Event, Failure};

/// How long to wait for links before datagrams go out without them.
const START_DELAY: Duration = Duration::from_millis(250);
/// Interval between two attempts to lock the state directory.
const RETRY_INTERVAL_LOCKED: Duration = Duration::from_millis(50);
/// Pause after a failed start of the station.
const RETRY_INTERVAL_FAILED: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum FallbackState {
    Waiting,
    Sending(Arc<StopBroadcast>),
    Unavailable(String),
}

/// Sends the datagrams of one stop until it is dropped.
#[derive(Debug)]
pub(super) struct DatagramFallback {
    started: Instant,
    start_now: CancellationToken,
    shutdown: DropGuard,
    state: watch::Receiver<FallbackState>,
    /// Why there are no links yet.
    reason: String,
    is_reported: bool,
}

impl DatagramFallback {
    pub(super) fn start(common: &CommonOptions, selector: &Selector) -> Result<Self, CliError> {
        let (start_now, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let (state_sender, state) = watch::channel(FallbackState::Waiting);
        let state_dir = connect::state_dir(common)?;
        let (file, selector) = (common.config.clone(), selector.clone());
        let after = if common.timeout_given {
            START_DELAY.min(common.timeout / 4)
        } else {
            START_DELAY
        };
        let (begun, shutdown_signal) = (start_now.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = shutdown_signal.cancelled() => return,
                () = begun.cancelled() => {}
                () = tokio::time::sleep(after) => {}
            }
            // Errors are reported where the station starts.
            let (config, _fault) = Config::load_best_effort(file.as_deref(), &state_dir);
            let prepared = if config.pings {
                StopBroadcast::prepare(state_dir, selector, config.ping_port).await
            } else {
                Err("pings are switched off".to_owned())
            };
            match prepared {
                Ok(shout) => {
                    state_sender.send_replace(FallbackState::Sending(Arc::new(shout.clone())));
                    shout.run(shutdown_signal).await;
                }
                Err(error) => {
                    state_sender.send_replace(FallbackState::Unavailable(error));
                }
            }
        });
        Ok(Self {
            started: clock::now(),
            start_now,
            shutdown: shutdown.drop_guard(),
            state,
            reason: "this station is not ready yet: stopping by datagrams meanwhile; acknowledgements come once it is"
                .to_owned(),
            is_reported: false,
        })
    }

    /// Whether datagrams go out, or have gone out.
    pub(super) fn is_sending(&self) -> bool {
        matches!(*self.state.borrow(), FallbackState::Sending(_))
    }

    /// The ordinary stop has gone out, with a number that is no lower: to a node that has received both, one of
    /// them is a repeat.
    pub(super) fn finish(self) {
        drop(self.shutdown);
    }

    /// The links cannot be brought up.
    pub(super) fn on_start_failure(&mut self, fault: &str) {
        self.reason = format!(
            "this station does not start ({fault}): stopping by datagrams meanwhile; acknowledgements come once it does"
        );
        self.start_now.cancel();
    }

    /// Prints once that datagrams go out.
    pub(super) fn report_state(&mut self, screen: &mut Screen) {
        let line = match &*self.state.borrow() {
            FallbackState::Waiting => return,
            FallbackState::Sending(_) => self.reason.clone(),
            FallbackState::Unavailable(error) => {
                format!("only links carry this stop, not datagrams: {error}")
            }
        };
        if !std::mem::replace(&mut self.is_reported, true) {
            screen.print_note(&line);
        }
    }

    /// The fleet, as soon as there is one; `None` if the user gives up, see [`Self::given_up`].
    pub(super) async fn connect(
        &mut self,
        common: &CommonOptions,
        selector: &Selector,
        screen: &mut Screen,
    ) -> Result<Option<Connection>, CliError> {
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let mut state = self.state.clone();
        let mut pause = Duration::ZERO;
        loop {
            let before = pause;
            let trying = async {
                tokio::time::sleep(before).await;
                Connection::try_open_for_stop(common, selector).await
            };
            tokio::pin!(trying);
            let tried = loop {
                tokio::select! {
                    biased;
                    _ = &mut interrupt => return Ok(None),
                    () = clock::sleep_until(self.started + common.timeout), if common.timeout_given => {
                        return Ok(None);
                    }
                    changed = state.changed(), if !self.is_reported => match changed {
                        Ok(()) => self.report_state(screen),
                        Err(_decided) => self.is_reported = true,
                    },
                    tried = &mut trying => break tried,
                }
            };
            let is_unavailable = matches!(*self.state.borrow(), FallbackState::Unavailable(_));
            pause = match tried {
                Ok(connection) => return Ok(Some(connection)),
                Err(OpenError::Held { holder, fault }) => {
                    if is_unavailable && clock::since(self.started) >= common.timeout {
                        return Err(fault);
                    }
                    self.reason = format!(
                        "another command of this station holds its state ({holder}): stopping by datagrams \
                         meanwhile; acknowledgements come once it is free"
                    );
                    RETRY_INTERVAL_LOCKED
                }
                Err(OpenError::Fault(fault)) if is_unavailable => return Err(fault),
                Err(OpenError::Fault(fault)) => {
                    self.on_start_failure(fault.message());
                    if self.is_sending() {
                        RETRY_INTERVAL_FAILED
                    } else {
                        RETRY_INTERVAL_LOCKED
                    }
                }
            };
        }
    }

    /// Reports a stop that was sent by datagrams only.
    pub(super) fn report_unacknowledged(&self, screen: &mut Screen) -> Result<u8, CliError> {
        let FallbackState::Sending(shout) = self.state.borrow().clone() else {
            screen.print_note("interrupted before anything was sent");
            return Ok(EXIT_INTERRUPTED);
        };
        if shout.targets().is_empty() {
            let message = "no node matches; the stop went out by datagram all the same";
            return Err(CliError::from_failure(Failure::NoMatch, message));
        }
        screen.print_warning(
            "THE STOP IS NOT REPEATED ANY MORE; what waits at this station for absent nodes is not withdrawn: type \
             `ground-station stop` again once the station starts",
        );
        let took = clock::since(self.started);
        let mut report = DeliveryReport::default();
        report.on_event(&Event::Targets {
            targets: shout.targets().to_vec(),
        });
        let reason = "NO ANSWER: the stop went out to it by datagram, which it cannot acknowledge; check that it has stopped";
        screen.report_no_answer(&mut report, reason, took)?;
        screen.print_report(&report, Some(took))?;
        Ok(report.exit_status())
    }
}
