//! Requests as they come to the engine: each is answered at once, or given a task of its own.

use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::sync::mpsc;

use super::registry::Target;
use super::respond::{finish, say, say_all};
use super::{
    Look, Task, cancel, durable_command, fetch, history_writer, membership_task, query, release, retry,
    send_files, stop, users,
};
use crate::fleet::gateway_peers::{PeerView, Posts};
use crate::fleet::{Call, CommandKind, Event, Failure, Request, offline_history};
use crate::store::Origin;

/// What to tell whoever means somebody in a fleet without nodes.
pub(in crate::fleet) const NO_NODES: &str = "this fleet has no nodes yet: type `ground-station fleet invite` here and \
                                             `swarm-node join CODE` on a device";
/// What is wrong with a `!term` that means nobody.
pub(in crate::fleet) const TAKES_NOBODY: &str = "takes nobody away";
/// How many terms that mean nobody are named in a note.
const UNMATCHED_SHOWN: usize = 8;

/// A request, who asks, and when.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) who: String,
    pub(super) origin: Origin,
    pub(super) asked: Instant,
}

fn stopped(events: &mpsc::Sender<Event>) {
    let stopped = Event::failed(Failure::Stopped, "the station is shutting down; ask again");
    // Without room nobody reads.
    let _caller_gone = events.try_send(stopped);
}

impl Task {
    pub(super) fn take_call(&mut self, call: Call) {
        let Call { request, events, who } = call;
        let (asked, origin) = (clock::now(), Origin::of(who.clone()));
        let Request::Retry {
            number,
            ttl_ms,
            timeout_ms,
        } = request
        else {
            return self.take_request(Asked {
                request,
                events,
                who,
                origin,
                asked,
            });
        };
        // It reads the history: a disk may take seconds, and an emergency stop is not to wait for it.
        let (state_dir, planned) = (self.state_dir.clone(), self.planned.clone());
        self.tasks.spawn(async move {
            let plan = match retry::plan(&state_dir, number, ttl_ms, timeout_ms).await {
                Ok(plan) => plan,
                Err(retry::Nothing(failure, message)) => {
                    let _caller_gone = events.send(Event::failed(failure, message)).await;
                    return;
                }
            };
            if let Some(note) = plan.note {
                // The first event of this request: there is room.
                let _caller_gone = events.try_send(Event::note(note));
            }
            let again = Asked {
                request: plan.request,
                events,
                who,
                origin: Origin {
                    retry_of: Some(number),
                    shown: Some(plan.shown),
                    ..origin
                },
                asked,
            };
            if let Err(mpsc::error::SendError(again)) = planned.send(again).await {
                stopped(&again.events);
            }
        });
    }

    /// Begins what is asked. It waits for nothing.
    pub(super) fn take_request(&mut self, asked: Asked) {
        let Asked {
            request,
            events,
            who,
            mut origin,
            asked,
        } = asked;
        let events = match history_writer::audited(&request) {
            Some(what) => history_writer::audit(&self.tasks, self.store.clone(), who.clone(), what, events),
            None => events,
        };
        let events = self.followers.overhear(&self.tasks, &request, &origin, events);
        match request {
            Request::Nodes { selector, timeout_ms } => {
                let deadline = self.shared.started + Duration::from_millis(timeout_ms);
                self.looks.push(Look {
                    selector,
                    deadline,
                    events,
                });
                self.answer_looks();
            }
            Request::Watch { selector } => self.watchers.add(&self.roll.lock(), selector, events),
            Request::Follow { telemetry } => {
                self.watchers
                    .add(&self.roll.lock(), Selector::all(), events.clone());
                self.followers.add(telemetry, &self.tasks, &self.stop, events);
            }
            Request::Peers { door } => {
                let peers = self.shared.posts.of(&door).map(|peers| peers.list());
                say(&self.tasks, events, about_peers(peers));
            }
            Request::Tell { door, peer, message } => {
                let posts = self.shared.posts.clone();
                self.tasks.spawn(async move {
                    let told = tell(&posts, &door, peer.as_deref(), &message).await;
                    say_all(&events, about_peers(told)).await;
                });
            }
            Request::Targets { selector } => {
                let Some(targets) = self.targets(&selector, &events) else {
                    return;
                };
                let targets = targets.into_iter().map(|target| target.node).collect();
                finish(&self.tasks, events, Ok(vec![Event::Targets { targets }]));
            }
            Request::Command {
                selector,
                action,
                arguments,
                lane,
                ttl_ms,
                ttl_given,
                timeout_ms,
                batch,
            } => {
                let Some(targets) = self.targets(&selector, &events) else {
                    return;
                };
                let command = query::Command {
                    action,
                    arguments,
                    lane,
                    ttl: Duration::from_millis(ttl_ms),
                    ttl_given,
                    timeout: Duration::from_millis(timeout_ms),
                    batch,
                };
                // What only reads has nothing to survive; in batches it goes the same way as the rest.
                if batch.is_none() && classify(&command.action, &command.arguments) == ActionClass::Read {
                    self.tasks
                        .spawn(query::run(self.shared.clone(), targets, command, events));
                } else {
                    origin.batch = batch.map(|batch| batch.size.to_string());
                    let act = durable_command::Act {
                        selector: selector.as_str().to_owned(),
                        origin,
                        asked,
                        command,
                    };
                    self.tasks
                        .spawn(durable_command::run(self.shared.clone(), targets, act, events));
                }
            }
            Request::Stop {
                selector,
                timeout_ms,
                beside,
            } => {
                let targets = self.roll.lock().targets(&selector);
                let order = stop::Asked {
                    nobody: self.nobody(&selector),
                    note: self.unmatched(&selector),
                    timeout: timeout_ms.map(Duration::from_millis),
                    selector,
                    beside,
                    origin,
                };
                self.tasks
                    .spawn(stop::run(self.shared.clone(), targets, order, events));
            }
            Request::Release { selector, timeout_ms } => {
                let Some(targets) = self.targets(&selector, &events) else {
                    return;
                };
                let record = stop::record(CommandKind::Release, &selector, &targets, timeout_ms, origin);
                let events = history_writer::transfer(&self.tasks, self.store.clone(), record, events);
                let timeout = Duration::from_millis(timeout_ms);
                let within = release::Within {
                    linked: self.shared.started + timeout,
                    give_up: clock::now() + timeout,
                };
                self.tasks
                    .spawn(release::run(self.shared.clone(), targets, within, events));
            }
            Request::SendFiles {
                selector,
                files,
                ttl_ms,
                timeout_ms,
            } => {
                let Some(targets) = self.targets(&selector, &events) else {
                    return;
                };
                let record = send_files::record(&selector, &targets, &files, ttl_ms, origin);
                let events = history_writer::transfer(&self.tasks, self.store.clone(), record, events);
                let patience = send_files::Patience {
                    ttl: Duration::from_millis(ttl_ms),
                    pause: Duration::from_millis(timeout_ms),
                };
                self.tasks.spawn(send_files::run(
                    self.shared.clone(),
                    targets,
                    files,
                    patience,
                    events,
                ));
            }
            Request::Fetch {
                selector,
                path,
                dir,
                timeout_ms,
            } => {
                let Some(targets) = self.targets(&selector, &events) else {
                    return;
                };
                let record = fetch::record(&selector, &targets, &path, &dir, origin);
                let events = history_writer::transfer(&self.tasks, self.store.clone(), record, events);
                let pause = Duration::from_millis(timeout_ms);
                self.tasks
                    .spawn(fetch::run(self.shared.clone(), targets, path, dir, pause, events));
            }
            Request::Init
            | Request::Invite { .. }
            | Request::Join { .. }
            | Request::Pending
            | Request::Accept { .. }
            | Request::Revoke { .. }
            | Request::Members => {
                let (forms, form) = (self.forms.clone(), membership_task::Form { request, events });
                self.tasks.spawn(async move {
                    if let Err(mpsc::error::SendError(form)) = forms.send(form).await {
                        stopped(&form.events);
                    }
                });
            }
            Request::History { query } => {
                let state_dir = self.state_dir.clone();
                self.tasks
                    .spawn(async move { offline_history::answer(&state_dir, query, events).await });
            }
            Request::Audit { query } => {
                let state_dir = self.state_dir.clone();
                self.tasks
                    .spawn(async move { offline_history::answer_audit(&state_dir, query, events).await });
            }
            Request::Users { ask } => {
                let store = self.store.clone();
                self.tasks.spawn(users::answer(store, ask, events));
            }
            Request::Cancel { number, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms);
                let cancel = cancel::Asked { number, timeout, who };
                let (keeper, store) = (self.shared.keeper.clone(), self.store.clone());
                let state_dir = self.state_dir.clone();
                self.tasks
                    .spawn(async move { cancel::run(&keeper, &store, &state_dir, cancel, &events).await });
            }
            // Has become what it repeats, above.
            Request::Retry { .. } => {}
        }
    }

    /// The nodes that a selector means; an error has been sent if there are none.
    fn targets(&self, selector: &Selector, events: &mpsc::Sender<Event>) -> Option<Vec<Target>> {
        // Not locked any longer: the names are asked for next.
        let mistaken = self.roll.lock().mistaken_exclusion(selector);
        if let Some(term) = mistaken {
            let known = self.known().map_or(String::new(), |known| format!("; {known}"));
            let why = format!("nothing was done: \"!{term}\" {TAKES_NOBODY}{known}");
            // The first event of this request: there is room.
            let _caller_gone = events.try_send(Event::failed(Failure::Usage, why));
            return None;
        }
        let targets = self.roll.lock().targets(selector);
        if targets.is_empty() {
            // The first event of this request: there is room.
            let _caller_gone = events.try_send(Event::failed(Failure::NobodyMatched, self.nobody(selector)));
            return None;
        }
        if let Some(note) = self.unmatched(selector) {
            let _caller_gone = events.try_send(Event::note(note));
        }
        Some(targets)
    }

    /// What to tell whoever named somebody who does not exist, beside others who do.
    fn unmatched(&self, selector: &Selector) -> Option<String> {
        let unmatched = self.roll.lock().unmatched(selector);
        let shown: Vec<String> = unmatched
            .iter()
            .take(UNMATCHED_SHOWN)
            .map(|term| format!("{term:?}"))
            .collect();
        let more = match unmatched.len().saturating_sub(UNMATCHED_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (!unmatched.is_empty()).then(|| format!("no node matches {}{more}", shown.join(", ")))
    }

    fn nobody(&self, selector: &Selector) -> String {
        match self.known() {
            Some(known) => format!("no node matches {:?}; {known}", selector.as_str()),
            None => NO_NODES.to_owned(),
        }
    }

    /// The names that there are.
    fn known(&self) -> Option<String> {
        let known: Vec<String> = self.roll.lock().node_names();
        let shown = known
            .iter()
            .take(8)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let more = if known.len() > 8 {
            format!(" and {} more", known.len() - 8)
        } else {
            String::new()
        };
        (!known.is_empty()).then(|| format!("known are {shown}{more}"))
    }

    /// Answers who is there, to whoever has waited long enough: a process that has just started first lets the
    /// members that it knows link and check themselves.
    pub(super) fn answer_looks(&mut self) {
        let now = clock::now();
        let looks = std::mem::take(&mut self.looks);
        for look in looks {
            if look.events.is_closed() {
                continue;
            }
            if now < look.deadline && !self.roll.lock().is_settled(&look.selector) {
                self.looks.push(look);
                continue;
            }
            let views = self.roll.lock().views(&look.selector);
            let found = if views.is_empty() && look.selector != Selector::all() {
                vec![Event::failed(Failure::NobodyMatched, self.nobody(&look.selector))]
            } else {
                let note = self.unmatched(&look.selector).filter(|_| !views.is_empty());
                let note = note.map(Event::note).into_iter();
                note.chain(views.into_iter().map(Event::Node))
                    .chain([Event::End])
                    .collect()
            };
            say(&self.tasks, look.events, found);
        }
    }
}

/// Sends a message in base64 to peers at a door.
async fn tell(
    posts: &Posts,
    door: &str,
    peer: Option<&str>,
    message: &str,
) -> Result<Vec<PeerView>, (Failure, String)> {
    let peers = posts.of(door)?;
    let message = data_encoding::BASE64.decode(message.as_bytes());
    let message = message.map_err(|error| (Failure::Usage, format!("the message is not base64: {error}")))?;
    peers.send(peer, message.into()).await
}

fn about_peers(peers: Result<Vec<PeerView>, (Failure, String)>) -> Vec<Event> {
    match peers {
        Ok(peers) => peers.into_iter().map(Event::Peer).chain([Event::End]).collect(),
        Err((failure, text)) => vec![Event::failed(failure, text)],
    }
}
