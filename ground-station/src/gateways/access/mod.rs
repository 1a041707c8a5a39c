//! The access policy of a gateway: permission, execution and audit of its clients' requests.

mod audit_aggregator;

use std::collections::BTreeMap;
use std::fmt;
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
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

use super::context::GatewayContext;
use crate::config::gateways::CommonOptions;
use crate::duration;
use crate::store::audit::AuditEntry;
use crate::text::pluralize;
use audit_aggregator::AuditAggregator;
use swarm_shared::api::{ActRequest, Delivery, Event, Failure, NodeView, NodesRequest, Request};
use swarm_shared::client::{self, EventStream};

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
    /// Its user, if it was authenticated as one.
    pub user: Option<String>,
}

impl Client {
    /// A client that is not authenticated, at this address.
    pub fn at(from: IpAddr) -> Self {
        Self { from, user: None }
    }
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

impl From<client::RequestError> for RequestError {
    fn from(error: client::RequestError) -> Self {
        let text = error.to_string();
        match error {
            client::RequestError::Selector(_) => Self::Usage(text),
            client::RequestError::Failed { failure, .. } => match failure {
                Failure::Usage => Self::Usage(text),
                Failure::NoMatch => Self::NoMatch(text),
                Failure::Failed | Failure::ShutDown | _ => Self::Failed(text),
            },
            client::RequestError::CutOff | _ => {
                Self::Failed("the station is shutting down; ask again".to_owned())
            }
        }
    }
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

    /// Checks that an action may pass.
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

    /// Checks a request that is not an action of a node: `allow` has to name it, and the gateway's role to permit it.
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

    /// Checks an action that the gateway knows to be a query.
    ///
    /// # Errors
    /// The reason, and what to change.
    pub fn permit_query(&self, what: &str) -> Result<(), RequestError> {
        self.check_role(&Permission::Command(ActionClass::Read))
            .map_err(|why| RequestError::NotAllowed(format!("{what:?}: {why}")))
    }

    /// Checks an emergency stop, which `allow` need not name.
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

    /// Whether `allow` names an action.
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
        let ActionRequest {
            selector,
            action,
            arguments,
            ttl,
            timeout,
        } = action_request;
        let reads = gate::classify(&action, &arguments) == ActionClass::Read;
        let (name, target) = (action.clone(), selector.as_str().to_owned());
        let work = async {
            self.permit(&action, &arguments)?;
            let request = ActRequest::Command {
                selector,
                action,
                arguments,
                lane: Lane::Control,
                ttl_ms: duration::to_ms(ttl),
                ttl_given: false,
                timeout_ms: duration::to_ms(timeout),
                batch: None,
            };
            self.deliveries(client, request).await
        };
        let summary = |deliveries: &Vec<Delivery>| summarize(deliveries);
        self.audited(client, (&name, &target), reads, work, summary).await
    }

    /// The nodes that a selector matches.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn nodes(&self, client: &Client, selector: Selector) -> Result<Vec<NodeView>, RequestError> {
        let target = selector.as_str().to_owned();
        let work = async {
            let request = NodesRequest::List {
                selector,
                timeout_ms: 0,
            };
            let mut events = self.perform(client, request).await;
            let mut nodes = Vec::new();
            while let Some(event) = events.next().await? {
                if let Event::Node(node) = event {
                    nodes.push(node);
                }
            }
            Ok(nodes)
        };
        let count = |nodes: &Vec<NodeView>| pluralize(nodes.len(), "node");
        self.audited(client, ("nodes", &target), true, work, count).await
    }

    /// Carries out `work` and audits it as a request with this name and detail. `outcome` describes a success. Requests
    /// that only read, or that began nothing, are aggregated.
    pub async fn audited<T>(
        &self,
        client: &Client,
        (name, detail): (&str, &str),
        reads: bool,
        work: impl Future<Output = Result<T, RequestError>>,
        outcome: impl FnOnce(&T) -> String,
    ) -> Result<T, RequestError> {
        let scope = self.begin_audit(client, name, detail).aggregate_if(reads);
        let done = work.await;
        let began_nothing = matches!(
            done,
            Err(RequestError::NotAllowed(_) | RequestError::Usage(_) | RequestError::NoMatch(_))
        );
        let outcome = match &done {
            Ok(value) => outcome(value),
            Err(why) => format!("not done: {why}"),
        };
        scope.aggregate_if(reads || began_nothing).finish(outcome).await;
        done
    }

    /// Makes a request for a client and waits for all deliveries. The caller has checked that it is permitted.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn deliveries(
        &self,
        client: &Client,
        request: impl Into<Request>,
    ) -> Result<Vec<Delivery>, RequestError> {
        Ok(self.perform(client, request).await.deliveries().await?)
    }

    /// Makes a request for a client. The caller has checked that it is permitted.
    pub async fn perform(&self, client: &Client, request: impl Into<Request>) -> EventStream {
        let user = self.client_label(client);
        self.0.context.fleet.perform_as(request, user).await
    }

    /// Audits a request that changed nothing; repeats are aggregated.
    pub async fn audit(&self, client: &Client, what: &str, detail: &str, outcome: String) {
        let audit_scope = self.begin_audit(client, what, detail);
        audit_scope.aggregate_if(true).finish(outcome).await;
    }

    /// Audits a request that was refused; repeats are aggregated.
    pub async fn audit_refusal(&self, client: &Client, what: &str, detail: &str, why: &impl fmt::Display) {
        self.audit(client, what, detail, format!("not done: {why}")).await;
    }

    /// Audits a malformed message.
    pub async fn audit_malformed(&self, client: &Client, fault: &str) {
        self.audit_refusal(client, "message", "", &fault).await;
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
        if let Some(entry) = &mut self.entry {
            entry.outcome = outcome;
        }
        if let Some(written) = self.write()
            && let Err(error) = written.await
        {
            tracing::error!(gateway = self.access.gateway(), %error, "Audit entry may be lost");
        }
    }

    /// Writes the entry, unless it is aggregated or written already. In a task of its own, since a client that disconnects
    /// drops the future that waits for it.
    fn write(&mut self) -> Option<JoinHandle<()>> {
        let entry = self.access.aggregate(self.entry.take()?, self.aggregate)?;
        let Inner { gateway, context, .. } = &*self.access.0;
        let Ok(runtime) = Handle::try_current() else {
            let AuditEntry { user, action, .. } = entry;
            tracing::error!(gateway, user, action, "Audit entry lost: the runtime has ended");
            return None;
        };
        let write = self.access.clone().write_audit(entry);
        Some(context.tasks.spawn_on(write, &runtime))
    }
}

impl Drop for AuditScope {
    fn drop(&mut self) {
        // The task writes it; no caller waits.
        let _detached = self.write();
    }
}

/// The number of deliveries per outcome: `3 done, 1 expired`.
fn summarize(deliveries: &[Delivery]) -> String {
    let mut counts: BTreeMap<Outcome, usize> = BTreeMap::new();
    for delivery in deliveries {
        *counts.entry(delivery.state).or_default() += 1;
    }
    let counts = counts
        .into_iter()
        .map(|(state, count)| format!("{count} {state}"));
    counts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
