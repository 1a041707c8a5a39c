//! Requests as they come to the engine: each is answered at once, or given a task of its own.

use std::time::Duration;

use swarm_shared::net::clock;
use swarm_shared::proto::selector::Selector;
use swarm_shared::proto::trust::gate::{ActionClass, classify};
use tokio::sync::mpsc;

use super::{Look, Task, acts, cancel, commands, fetch, office, recorder, release, retry, roll, send, stop};
use crate::fleet::{Call, CommandKind, Event, Failure, Request, archive};
use crate::store::Origin;

/// How many terms that mean nobody are named in a note.
const UNMATCHED_SHOWN: usize = 8;

impl Task {
    pub(super) async fn take_call(&mut self, call: Call) {
        let Call { request, events, who } = call;
        let mut origin = Origin::of(who.clone());
        let request = if let Request::Retry {
            number,
            ttl_ms,
            timeout_ms,
        } = request
        {
            match retry::plan(&self.state_dir, number, ttl_ms, timeout_ms).await {
                Ok(plan) => {
                    (origin.retry_of, origin.shown) = (Some(number), Some(plan.shown));
                    if let Some(note) = plan.note {
                        // The first event of this request: there is room.
                        let _caller_gone = events.try_send(Event::note(note));
                    }
                    plan.request
                }
                Err(retry::Nothing(failure, message)) => {
                    let _caller_gone = events.try_send(Event::failed(failure, message));
                    return;
                }
            }
        } else {
            request
        };
        let events = match recorder::audited(&request) {
            Some(what) => recorder::audit(&self.tasks, self.store.clone(), who.clone(), what, events),
            None => events,
        };
        if request.needs_fleet()
            && let Err(message) = self.ensure_fleet(&events).await
        {
            let _caller_gone = events.send(Event::failed(Failure::Failed, message)).await;
            return;
        }
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
            Request::Watch { selector } => self.watchers.add(&self.roll, selector, events),
            Request::Targets { selector } => {
                let Some(targets) = self.targets(&selector, &events) else {
                    return;
                };
                let targets = targets.into_iter().map(|target| target.node).collect();
                finish(&events, Ok(vec![Event::Targets { targets }])).await;
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
                let command = commands::Command {
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
                        .spawn(commands::run(self.shared.clone(), targets, command, events));
                } else {
                    origin.batch = batch.map(|batch| batch.size.to_string());
                    let act = acts::Act {
                        selector: selector.as_str().to_owned(),
                        origin,
                        command,
                    };
                    self.tasks
                        .spawn(acts::run(self.shared.clone(), targets, act, events));
                }
            }
            Request::Stop { selector, timeout_ms } => {
                let targets = self.roll.targets(&selector);
                let asked = stop::Asked {
                    nobody: self.nobody(&selector),
                    note: self.unmatched(&selector),
                    timeout: timeout_ms.map(Duration::from_millis),
                    selector,
                    origin,
                };
                self.tasks
                    .spawn(stop::run(self.shared.clone(), targets, asked, events));
            }
            Request::Release { selector, timeout_ms } => {
                let Some(targets) = self.targets(&selector, &events) else {
                    return;
                };
                let record = stop::record(CommandKind::Release, &selector, &targets, timeout_ms, origin);
                let events = recorder::transfer(&self.tasks, self.store.clone(), record, events);
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
                let record = send::record(&selector, &targets, &files, ttl_ms, origin);
                let events = recorder::transfer(&self.tasks, self.store.clone(), record, events);
                let patience = send::Patience {
                    ttl: Duration::from_millis(ttl_ms),
                    pause: Duration::from_millis(timeout_ms),
                };
                self.tasks
                    .spawn(send::run(self.shared.clone(), targets, files, patience, events));
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
                let events = recorder::transfer(&self.tasks, self.store.clone(), record, events);
                let pause = Duration::from_millis(timeout_ms);
                self.tasks
                    .spawn(fetch::run(self.shared.clone(), targets, path, dir, pause, events));
            }
            Request::Init => self.init(events).await,
            Request::Invite {
                role,
                uses,
                valid_for_ms,
            } => {
                let listens = self.shared.endpoint.listens();
                finish(
                    &events,
                    self.office.invite(role, uses, valid_for_ms, listens).await,
                )
                .await;
            }
            Request::Join { code, timeout_ms } => self.join(code, timeout_ms, events).await,
            Request::Pending => finish(&events, self.office.pending().await).await,
            Request::Accept { node } => {
                let membership = self.shared.endpoint.membership().borrow().clone();
                let accepted = self.office.accept(&node, membership.as_deref()).await;
                if let Ok(member) = &accepted {
                    self.dial_newcomer(member);
                    self.roll.admit(member.clone());
                    self.open_members().await;
                }
                finish(
                    &events,
                    accepted.map(|row| vec![Event::Member(roll::member_view(&row))]),
                )
                .await;
            }
            Request::Revoke { node } => finish(&events, self.revoke(&node).await).await,
            Request::History { query } => {
                let state_dir = self.state_dir.clone();
                self.tasks
                    .spawn(async move { archive::answer(&state_dir, query, events).await });
            }
            Request::Audit { query } => {
                let state_dir = self.state_dir.clone();
                self.tasks
                    .spawn(async move { archive::answer_audit(&state_dir, query, events).await });
            }
            Request::Cancel { number, timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms);
                let asked = cancel::Asked { number, timeout, who };
                let (keeper, store) = (self.shared.keeper.clone(), self.store.clone());
                let state_dir = self.state_dir.clone();
                self.tasks
                    .spawn(async move { cancel::run(&keeper, &store, &state_dir, asked, &events).await });
            }
            // Has become what it repeats, above.
            Request::Retry { .. } => {}
            Request::Members => {
                let own = self.membership_view().map(Event::Membership);
                let members = self.roll.members().into_iter().map(Event::Member);
                finish(
                    &events,
                    own.map(|own| std::iter::once(own).chain(members).collect()),
                )
                .await;
            }
        }
    }

    /// The nodes that a selector means; an error has been sent if there are none.
    fn targets(&self, selector: &Selector, events: &mpsc::Sender<Event>) -> Option<Vec<roll::Target>> {
        let targets = self.roll.targets(selector);
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
        let unmatched = self.roll.unmatched(selector);
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
        let known: Vec<String> = self.roll.node_names();
        if known.is_empty() {
            return "this fleet has no nodes yet: type `ground-station fleet invite` here and `swarm-node join CODE` on \
                    a device"
                .to_owned();
        }
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
        format!("no node matches {:?}; known are {shown}{more}", selector.as_str())
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
            if now < look.deadline && !self.roll.is_settled(&look.selector) {
                self.looks.push(look);
                continue;
            }
            let views = self.roll.views(&look.selector);
            let found = if views.is_empty() && look.selector != Selector::all() {
                vec![Event::failed(Failure::NobodyMatched, self.nobody(&look.selector))]
            } else {
                let note = self.unmatched(&look.selector).filter(|_| !views.is_empty());
                let note = note.map(Event::note).into_iter();
                note.chain(views.into_iter().map(Event::Node))
                    .chain([Event::End])
                    .collect()
            };
            self.tasks
                .spawn(async move { say_all(&look.events, found).await });
        }
    }
}

/// Sends what came of a request, and its end.
pub(super) async fn finish(events: &mpsc::Sender<Event>, done: Result<Vec<Event>, office::OfficeError>) {
    let all = match done {
        Ok(mut all) => {
            all.push(Event::End);
            all
        }
        Err(error) => vec![Event::failed(error.failure(), error.to_string())],
    };
    say_all(events, all).await;
}

async fn say_all(events: &mpsc::Sender<Event>, all: Vec<Event>) {
    for event in all {
        if events.send(event).await.is_err() {
            // Nobody wants to know.
            return;
        }
    }
}
