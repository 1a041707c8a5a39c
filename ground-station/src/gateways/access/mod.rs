//! Which requests may pass a gateway, under which name they are carried out, and their audit.

mod audit_aggregator;

use std::net::IpAddr;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use swarm_shared::config::suggest::{any_of, nearest};
use swarm_shared::net::clock;
use swarm_shared::net::sync::Mutex;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::outcome::Outcome;
use swarm_shared::proto::selector::{Glob, Selector};
use swarm_shared::proto::trust::Role;
use swarm_shared::proto::trust::gate::{self, ActionClass, Permission};
use swarm_shared::proto::wire::{Kind, Lane};
use tokio::task::JoinSet;

use super::context::GatewayContext;
use crate::config::gateways::CommonOptions;
use crate::duration;
use crate::store::audit::AuditEntry;
use crate::text::pluralize;
use audit_aggregator::AuditAggregator;
use swarm_shared::api::{ActRequest, Delivery, Event, Failure, NodeView, NodesRequest, Request};

/// Time between two checks for aggregated entries that are due.
const FLUSH_INTERVAL: Duration = Duration::from_secs(15);
/// Most terms in a client's selector: each is compared with all nodes, and a stop waits meanwhile.
const SELECTOR_TERMS_MAX: usize = 64;
/// Built-in actions that only read, some of them depending on their arguments.
const READ_ONLY_ACTIONS: [&str; 6] = ["config", "id", "ping", "selfcheck", "telemetry", "time"];
/// The outcome of a request that was dropped before it ended.
const OUTCOME_CUT_OFF: &str = "cut off: the client disconnected or the station shut down before it ended";

/// A client of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub from: IpAddr,
    /// Its user, if the protocol names one and it was authenticated.
    pub user: Option<String>,
}

/// The access policy of one gateway: its role and its list. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessPolicy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    gateway: &'static str,
    role: Role,
    allow: Vec<Glob>,
    context: GatewayContext,
    aggregator: Mutex<AuditAggregator>,
}

/// An action for nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionRequest {
    /// The nodes that it is for.
    pub selector: Selector,
    /// Its name.
    pub action: String,
    /// Its arguments.
    pub arguments: Arguments,
    /// How long it may wait to begin.
    pub ttl: Duration,
    /// How long outcomes are waited for.
    pub timeout: Duration,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The gateway's role or list does not permit it.
    #[error("{0}")]
    NotAllowed(String),
    /// The request is invalid.
    #[error("{0}")]
    Usage(String),
    /// No node matches its selector.
    #[error("{0}")]
    NoMatch(String),
    /// It failed, or the station is shutting down.
    #[error("{0}")]
    Failed(String),
}

/// Parses a client's selector.
///
/// # Errors
/// [`RequestError::Usage`]: invalid, or more than 64 terms.
pub fn parse_selector(text: &str) -> Result<Selector, RequestError> {
    let selector = Selector::parse(text).map_err(|error| RequestError::Usage(error.to_string()))?;
    if selector.term_count() > SELECTOR_TERMS_MAX {
        return Err(RequestError::Usage(format!(
            "a selector has at most {SELECTOR_TERMS_MAX} terms at a gateway: use a glob such as drone-*, or a tag"
        )));
    }
    Ok(selector)
}

impl AccessPolicy {
    /// The policy of the gateway with this name in the configuration.
    pub fn new(gateway: &'static str, common: &CommonOptions, context: &GatewayContext) -> Self {
        let access = Self(Arc::new(Inner {
            gateway,
            role: common.role,
            allow: common.allow.clone(),
            context: context.clone(),
            aggregator: Mutex::default(),
        }));
        context.tasks.spawn(access.clone().flush_aggregates());
        access
    }

    /// The gateway's name in the configuration.
    pub fn gateway(&self) -> &'static str {
        self.0.gateway
    }

    /// What the gateway was opened with.
    pub fn context(&self) -> &GatewayContext {
        &self.0.context
    }

    /// Writes aggregated entries when they are due, and the rest at shutdown.
    async fn flush_aggregates(self) {
        loop {
            let look = clock::sleep_until(clock::now() + FLUSH_INTERVAL);
            let over = self.0.context.shutdown.run_until_cancelled(look).await.is_none();
            let due = if over {
                self.aggregator().close()
            } else {
                self.aggregator().take_due(self.0.gateway, clock::now())
            };
            // At the same time, so that the store commits them together: one commit each could take longer on a slow disk
            // than the shutdown may.
            let mut writes = JoinSet::new();
            for entry in due {
                writes.spawn(self.clone().write_audit(entry));
            }
            while let Some(written) = writes.join_next().await {
                if let Err(error) = written {
                    tracing::error!(gateway = self.0.gateway, %error, "Audit entries may be lost");
                }
            }
            if over {
                return;
            }
        }
    }

    fn aggregator(&self) -> MutexGuard<'_, AuditAggregator> {
        self.0.aggregator.lock()
    }

    /// Whether an action may pass.
    ///
    /// # Errors
    /// The reason, and what to change.
    pub fn permit(&self, action: &str, arguments: &Arguments) -> Result<(), RequestError> {
        let class = gate::classify(action, arguments);
        let named = class == ActionClass::Read || self.allows(action);
        let gateway = self.0.gateway;
        self.check_role(&Permission::Command(class)).map_err(|lack| {
            let list = if named { "" } else { ", and name it in `allow`" };
            RequestError::NotAllowed(format!("{lack}{list}"))
        })?;
        if named {
            return Ok(());
        }
        let reads = if READ_ONLY_ACTIONS.contains(&action) {
            "with these arguments it does not only read"
        } else {
            "it is not known to read"
        };
        let meant = match self.suggestions(action) {
            Some(meant) => format!(", or did you mean {meant}?"),
            None => String::new(),
        };
        Err(RequestError::NotAllowed(format!(
            "action {action:?} may not pass this gateway: {reads}, and no name in `allow` means it; \
             name it in `allow` of [gateways.{gateway}]{meant}"
        )))
    }

    /// Permitted actions with a similar name.
    fn suggestions(&self, action: &str) -> Option<String> {
        let named: Vec<String> = self.0.allow.iter().filter_map(Glob::literal).collect();
        let mut known: Vec<&str> = READ_ONLY_ACTIONS
            .into_iter()
            .chain(named.iter().map(String::as_str))
            .collect();
        known.retain(|name| *name != action);
        any_of(
            nearest(action, &known)
                .iter()
                .map(|name| format!("{name:?}"))
                .collect(),
        )
    }

    /// Whether a request that is no action of a node may pass: the gateway's list has to name it, and its role to permit it.
    ///
    /// # Errors
    /// The reason, and what to change.
    pub fn permit_named(&self, name: &str, wish: &Permission) -> Result<(), RequestError> {
        self.check_role(wish).map_err(RequestError::NotAllowed)?;
        if self.allows(name) {
            return Ok(());
        }
        let gateway = self.0.gateway;
        Err(RequestError::NotAllowed(format!(
            "{name} may not pass this gateway; name it in `allow` of [gateways.{gateway}]"
        )))
    }

    /// Whether an action may pass that the gateway knows to be a query.
    ///
    /// # Errors
    /// The reason, and what to change.
    pub fn permit_query(&self, what: &str) -> Result<(), RequestError> {
        self.check_role(&Permission::Command(ActionClass::Read))
            .map_err(|why| RequestError::NotAllowed(format!("{what:?}: {why}")))
    }

    /// Whether an emergency stop may pass, without being in the gateway's list.
    ///
    /// # Errors
    /// The reason, and what to change.
    pub fn permit_stop(&self) -> Result<(), RequestError> {
        self.check_role(&Permission::Frame(Kind::Stop))
            .map_err(RequestError::NotAllowed)
    }

    fn check_role(&self, wish: &Permission) -> Result<(), String> {
        let gateway = self.0.gateway;
        match gate::missing_role(self.0.role, wish) {
            Some(lack) => Err(format!("{lack}; see `role` in [gateways.{gateway}]")),
            None => Ok(()),
        }
    }

    /// Whether the gateway's list names an action.
    pub fn allows(&self, action: &str) -> bool {
        self.0.allow.iter().any(|glob| glob.matches(action))
    }

    /// Carries out an action if it is permitted, and waits for all outcomes.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn command(
        &self,
        client: &Client,
        action_request: ActionRequest,
    ) -> Result<Vec<Delivery>, RequestError> {
        let permitted = self.permit(&action_request.action, &action_request.arguments);
        let audit_scope = self.begin_audit(client, &action_request.action, action_request.selector.as_str());
        let reads = gate::classify(&action_request.action, &action_request.arguments) == ActionClass::Read;
        let audit_scope = audit_scope.aggregate_if(reads || permitted.is_err());
        let done = match permitted {
            Ok(()) => self.execute(client, action_request).await,
            Err(refused) => Err(refused),
        };
        let outcome = match &done {
            Ok(deliveries) => summary(deliveries),
            Err(why) => format!("not done: {why}"),
        };
        let nothing_begun = matches!(
            done,
            Err(RequestError::NotAllowed(_) | RequestError::Usage(_) | RequestError::NoMatch(_))
        );
        // A request that began nothing is aggregated like a read.
        audit_scope
            .aggregate_if(reads || nothing_begun)
            .finish(outcome)
            .await;
        done
    }

    async fn execute(
        &self,
        client: &Client,
        action_request: ActionRequest,
    ) -> Result<Vec<Delivery>, RequestError> {
        let request = ActRequest::Command {
            selector: action_request.selector,
            action: action_request.action,
            arguments: action_request.arguments,
            lane: Lane::Control,
            ttl_ms: duration::to_ms(action_request.ttl),
            ttl_given: false,
            timeout_ms: duration::to_ms(action_request.timeout),
            batch: None,
        };
        let mut deliveries = Vec::new();
        self.request(client, request, |event| {
            if let Event::Delivery(delivery) = event {
                deliveries.push(delivery);
            }
        })
        .await?;
        Ok(deliveries)
    }

    /// The nodes that a selector matches.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn nodes(&self, client: &Client, selector: Selector) -> Result<Vec<NodeView>, RequestError> {
        let audit_scope = self
            .begin_audit(client, "nodes", selector.as_str())
            .aggregate_if(true);
        let mut nodes = Vec::new();
        let request = NodesRequest::List {
            selector,
            timeout_ms: 0,
        };
        let done = self.request(client, request, |event| {
            if let Event::Node(node) = event {
                nodes.push(node);
            }
        });
        let done = done.await;
        let outcome = match &done {
            Ok(()) => pluralize(nodes.len(), "node"),
            Err(why) => format!("not done: {why}"),
        };
        audit_scope.finish(outcome).await;
        done.map(|()| nodes)
    }

    /// Makes a request in a client's name. The caller has checked that it is permitted.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request(
        &self,
        client: &Client,
        request: impl Into<Request>,
        mut on_event: impl FnMut(Event),
    ) -> Result<(), RequestError> {
        let mut events = self
            .0
            .context
            .fleet
            .perform_as(request, self.client_label(client))
            .await;
        while let Some(event) = events.recv().await {
            if event == Event::End {
                return Ok(());
            }
            if let Event::Failed { failure, message } = event {
                return Err(match failure {
                    Failure::Usage => RequestError::Usage(message),
                    Failure::NoMatch => RequestError::NoMatch(message),
                    Failure::Failed | Failure::ShutDown | _ => RequestError::Failed(message),
                });
            }
            on_event(event);
        }
        Err(RequestError::Failed(
            "the station is shutting down; ask again".to_owned(),
        ))
    }

    /// Audits a request that changed nothing; repeats are aggregated.
    pub async fn audit(&self, client: &Client, what: &str, detail: &str, outcome: String) {
        let audit_scope = self.begin_audit(client, what, detail);
        audit_scope.aggregate_if(true).finish(outcome).await;
    }

    /// Audits a malformed message.
    pub async fn audit_malformed(&self, client: &Client, fault: &str) {
        self.audit(client, "message", "", format!("not done: {fault}"))
            .await;
    }

    /// Begins the audit of a request, which is written however the request ends.
    pub fn begin_audit(&self, client: &Client, what: &str, detail: &str) -> AuditScope {
        AuditScope {
            access: self.clone(),
            aggregate: false,
            entry: Some(AuditEntry {
                at_ms: 0,
                user: self.client_label(client),
                action: what.to_owned(),
                detail: detail.to_owned(),
                outcome: OUTCOME_CUT_OFF.to_owned(),
            }),
        }
    }

    /// Returns the entry if it is to be written now.
    fn aggregate(&self, mut entry: AuditEntry, aggregate: bool) -> Option<AuditEntry> {
        entry.at_ms = clock::unix_time_ms();
        if aggregate {
            self.aggregator().record(self.0.gateway, entry, clock::now())
        } else {
            Some(entry)
        }
    }

    async fn write_audit(self, entry: AuditEntry) {
        if let Err(error) = self.0.context.store.audit(entry).await {
            tracing::error!(gateway = self.0.gateway, %error, "Audit entry not stored");
        }
    }

    /// A client's name in the history and the audit.
    pub fn client_label(&self, client: &Client) -> String {
        let Inner { gateway, .. } = &*self.0;
        let from = client.from;
        match &client.user {
            Some(user) => format!("{user} at {gateway} from {from}"),
            None => format!("{gateway} from {from}"),
        }
    }
}

/// The audit of a request in progress. If it is dropped before [`Self::finish`], as when a client disconnects, the request
/// is audited as cut off: it may have been carried out.
#[derive(Debug)]
#[must_use = "a request whose scope is dropped is audited as cut off"]
pub struct AuditScope {
    access: AccessPolicy,
    /// Whether repeats are aggregated.
    aggregate: bool,
    entry: Option<AuditEntry>,
}

impl AuditScope {
    /// Sets whether repeats are aggregated: for requests that change nothing.
    pub fn aggregate_if(mut self, aggregate: bool) -> Self {
        self.aggregate = aggregate;
        self
    }

    /// Ends the request; returns when its entry is stored.
    pub async fn finish(mut self, outcome: String) {
        let entry = self.entry.take().map(|entry| AuditEntry { outcome, ..entry });
        let Some(entry) = entry.and_then(|entry| self.access.aggregate(entry, self.aggregate)) else {
            return;
        };
        let Inner { gateway, context, .. } = &*self.access.0;
        // In a task of its own, since a client that disconnects now drops this future.
        let written = context.tasks.spawn(self.access.clone().write_audit(entry));
        if let Err(error) = written.await {
            tracing::error!(gateway, %error, "Audit entry may be lost");
        }
    }
}

impl Drop for AuditScope {
    fn drop(&mut self) {
        let counted = self.entry.take();
        let Some(entry) = counted.and_then(|entry| self.access.aggregate(entry, self.aggregate)) else {
            return;
        };
        let Inner { gateway, context, .. } = &*self.access.0;
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                context
                    .tasks
                    .spawn_on(self.access.clone().write_audit(entry), &runtime);
            }
            Err(_over) => tracing::error!(
                gateway,
                who = entry.user,
                what = entry.action,
                "Audit entry lost: the runtime has ended"
            ),
        }
    }
}

/// The number of deliveries per outcome: `3 done, 1 expired`.
fn summary(deliveries: &[Delivery]) -> String {
    let count = |state: Outcome| {
        deliveries
            .iter()
            .filter(|delivery| delivery.state == state)
            .count()
    };
    let all = [
        Outcome::Done,
        Outcome::Failed,
        Outcome::Refused,
        Outcome::Expired,
        Outcome::Unknown,
        Outcome::NoAnswer,
    ];
    let counts = all.map(|state| (count(state), state.as_str()));
    let told: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, state)| format!("{count} {state}"))
        .collect();
    told.join(", ")
}

#[cfg(test)]
mod tests;
