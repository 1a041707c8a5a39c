//! What `stop` does until somebody answers who has the links: it stops by datagrams, see [`Shout`].
//!
//! | state | until |
//! |---|---|
//! | waiting | [`BEGIN_AFTER`], or a station that does not start |
//! | out | the ordinary stop has gone out, or whoever asked gives up |
//! | impossible | the end: as for any other verb, the links are all there is |

use std::sync::Arc;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::outcome::{Outcome, Reply};
use swarm_shared::proto::selector::Selector;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cli::Common;
use crate::cli::connect::{self, Connection, NotOpen};
use crate::cli::screen::{CliError, EXIT_INTERRUPTED, Screen};
use crate::config::Config;
use crate::fleet::stop_broadcast::Shout;
use crate::fleet::{Delivery, Event, Failure};
use crate::view::deliveries::Report;

/// How long the links may take before datagrams go out without them.
const BEGIN_AFTER: Duration = Duration::from_millis(250);
/// Between two looks whether the state directory is free.
const RETRY_HELD: Duration = Duration::from_millis(50);
/// Between two starts of a station that does not start.
const RETRY_FAULT: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum State {
    Waiting,
    Out(Arc<Shout>),
    Impossible(String),
}

/// The datagrams of one stop. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Backup {
    started: Instant,
    begin: CancellationToken,
    stop: DropGuard,
    state: watch::Receiver<State>,
    /// Why there are no links yet.
    why: String,
    said: bool,
}

impl Backup {
    pub(super) fn start(common: &Common, selector: &Selector) -> Result<Self, CliError> {
        let (begin, stop) = (CancellationToken::new(), CancellationToken::new());
        let (tell, state) = watch::channel(State::Waiting);
        let state_dir = connect::state_dir(common)?;
        let (file, selector) = (common.config.clone(), selector.clone());
        let after = if common.timeout_given {
            BEGIN_AFTER.min(common.timeout / 4)
        } else {
            BEGIN_AFTER
        };
        let (begun, stopped) = (begin.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = stopped.cancelled() => return,
                () = begun.cancelled() => {}
                () = tokio::time::sleep(after) => {}
            }
            // Faults are told where the station starts.
            let (config, _fault) = Config::load_regardless(file.as_deref(), &state_dir);
            let prepared = if config.pings {
                Shout::prepare(state_dir, selector, config.ping_port).await
            } else {
                Err("pings are switched off".to_owned())
            };
            match prepared {
                Ok(shout) => {
                    tell.send_replace(State::Out(Arc::new(shout.clone())));
                    shout.go_on(stopped).await;
                }
                Err(error) => {
                    tell.send_replace(State::Impossible(error));
                }
            }
        });
        Ok(Self {
            started: clock::now(),
            begin,
            stop: stop.drop_guard(),
            state,
            why: "this station is not ready yet: stopping by datagrams meanwhile; acknowledgements come once it is"
                .to_owned(),
            said: false,
        })
    }

    /// Whether datagrams go out, or have gone out.
    pub(super) fn is_out(&self) -> bool {
        matches!(*self.state.borrow(), State::Out(_))
    }

    /// The ordinary stop has gone out, with a number of its own that is no lower: to a node that has heard both, one of
    /// them is a repeat.
    pub(super) fn end(self) {
        drop(self.stop);
    }

    /// The links do not come.
    pub(super) fn failed(&mut self, fault: &str) {
        self.why = format!(
            "this station does not start ({fault}): stopping by datagrams meanwhile; acknowledgements come once it does"
        );
        self.begin.cancel();
    }

    /// Tells, once, what it does.
    pub(super) fn say(&mut self, screen: &mut Screen) {
        let line = match &*self.state.borrow() {
            State::Waiting => return,
            State::Out(_) => self.why.clone(),
            State::Impossible(error) => format!("only links carry this stop, not datagrams: {error}"),
        };
        if !std::mem::replace(&mut self.said, true) {
            screen.note(&line);
        }
    }

    /// The fleet, as soon as there is one; `None` if whoever asked gives up, see [`Self::given_up`].
    pub(super) async fn connect(
        &mut self,
        common: &Common,
        selector: &Selector,
        screen: &mut Screen,
    ) -> Result<Option<Connection>, CliError> {
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        let mut deciding = self.state.clone();
        let mut pause = Duration::ZERO;
        loop {
            let before = pause;
            let trying = async {
                tokio::time::sleep(before).await;
                Connection::attempt_to_stop(common, selector).await
            };
            tokio::pin!(trying);
            let tried = loop {
                tokio::select! {
                    biased;
                    _ = &mut interrupt => return Ok(None),
                    () = clock::sleep_until(self.started + common.timeout), if common.timeout_given => {
                        return Ok(None);
                    }
                    changed = deciding.changed(), if !self.said => match changed {
                        Ok(()) => self.say(screen),
                        Err(_decided) => self.said = true,
                    },
                    tried = &mut trying => break tried,
                }
            };
            let impossible = matches!(*self.state.borrow(), State::Impossible(_));
            pause = match tried {
                Ok(connection) => return Ok(Some(connection)),
                Err(NotOpen::Held { holder, fault }) => {
                    if impossible && clock::since(self.started) >= common.timeout {
                        return Err(fault);
                    }
                    self.why = format!(
                        "another command of this station holds its state ({holder}): stopping by datagrams \
                         meanwhile; acknowledgements come once it is free"
                    );
                    RETRY_HELD
                }
                Err(NotOpen::Fault(fault)) if impossible => return Err(fault),
                Err(NotOpen::Fault(fault)) => {
                    self.failed(fault.message());
                    if self.is_out() { RETRY_FAULT } else { RETRY_HELD }
                }
            };
        }
    }

    /// Reports a stop that went out by datagrams only.
    pub(super) fn given_up(&self, screen: &mut Screen) -> Result<u8, CliError> {
        let State::Out(shout) = self.state.borrow().clone() else {
            screen.note("interrupted before anything was sent");
            return Ok(EXIT_INTERRUPTED);
        };
        if shout.targets().is_empty() {
            let message = "no node matches; the stop went out by datagram all the same";
            return Err(CliError::request(Failure::NobodyMatched, message));
        }
        screen.warning(
            "THE STOP IS NOT REPEATED ANY MORE; what waits at this station for absent nodes is not withdrawn: type \
             `ground-station stop` again once the station starts",
        );
        let took = clock::since(self.started);
        let mut report = Report::default();
        report.add(&Event::Targets {
            targets: shout.targets().to_vec(),
        });
        for target in shout.targets() {
            let text = "NO ANSWER: the stop went out to it by datagram, which it cannot acknowledge; look whether it \
                        has stopped";
            let reply = Reply::ended(Outcome::NoAnswer, text);
            let event = Event::Delivery(Delivery::new(target.clone(), reply, took.as_secs_f64() * 1_000.0));
            screen.event(&event)?;
            report.add(&event);
        }
        if !screen.json {
            screen.result(&report.groups(screen.style))?;
            screen.result(&format!("\n{}", report.summary(took, screen.style)))?;
        }
        Ok(report.exit_status())
    }
}
