//! `nodes`: lists or watches nodes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use swarm_shared::net::clock;
use swarm_shared::proto::id::PeerId;
use swarm_shared::proto::selector::Selector;

use super::CommonOptions;
use super::connect::Connection;
use super::request::follow;
use super::screen::{CliError, EXIT_INTERRUPTED, EXIT_NO_MATCH, Screen};
use crate::duration::to_ms;
use crate::view::Style;
use crate::view::nodes::NodeTable;
use swarm_shared::api::{Event, Failure, NodeView, NodesRequest, Request};
use swarm_shared::client::Fleet;

/// Shortest time between two redraws.
const REDRAW_MIN: Duration = Duration::from_millis(100);
/// Longest time between two redraws, since the ages on the screen advance.
const REDRAW_MAX: Duration = Duration::from_secs(1);

const NO_NODES_HINT: &str = "no node is known; run `ground-station fleet invite` and `swarm-node join CODE` on a device, \
                      or see `ground-station demo`";

/// List nodes: name, id, state, last heard, address, checks
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The nodes: a selector
    #[arg(default_value = "all")]
    selector: Selector,
    /// Keep showing, redrawn in place; not on a terminal: a line for each change
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    if args.watch {
        let connection = Connection::open_long_running(common, "nodes --watch", screen).await?;
        let outcome = watch(&connection.fleet, args.selector, screen).await;
        connection.close().await;
        return outcome;
    }
    let connection = Connection::open(common, "nodes", screen).await?;
    let request = NodesRequest::List {
        selector: args.selector,
        timeout_ms: to_ms(common.timeout),
    };
    let outcome = list(&connection.fleet, request, screen).await;
    connection.close().await;
    outcome
}

async fn list(fleet: &Fleet, request: impl Into<Request>, screen: &mut Screen) -> Result<u8, CliError> {
    let mut nodes = NodeTable::default();
    let style = screen.style;
    let ended = follow(fleet, request, screen, |event, _screen| {
        if let Some(Event::Node(view)) = event {
            nodes.update(view, style);
        }
        Ok(())
    })
    .await?;
    if !screen.json && !nodes.is_empty() {
        screen.print_result(&nodes.table(|_id| 0, style).join("\n"))?;
    }
    ended.into_result()?;
    if nodes.is_empty() {
        return Err(CliError::from_failure(Failure::NoMatch, NO_NODES_HINT));
    }
    Ok(0)
}

async fn watch(fleet: &Fleet, selector: Selector, screen: &mut Screen) -> Result<u8, CliError> {
    let mut events = fleet.perform(NodesRequest::Watch { selector }).await;
    let mut shown = LiveTable::default();
    let mut redraw = tokio::time::interval(REDRAW_MAX);
    redraw.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        let event = tokio::select! {
            biased;
            _ = &mut interrupt => return Ok(EXIT_INTERRUPTED),
            event = events.next() => event,
            _ = redraw.tick() => {
                shown.draw(screen)?;
                continue;
            }
        };
        let Some(event) = event? else {
            return Ok(if shown.nodes.is_empty() { EXIT_NO_MATCH } else { 0 });
        };
        screen.print_event(&event)?;
        if let Event::Note { text } = &event {
            screen.print_note(text);
        }
        if let Event::Node(view) = &event
            && let Some(line) = shown.update(view, screen.style)
            && !screen.json
        {
            if screen.is_terminal {
                redraw.reset_after(REDRAW_MIN);
            } else {
                screen.print_result(&line)?;
            }
        }
    }
}

/// The table on the screen, and when each of its views arrived.
#[derive(Default)]
struct LiveTable {
    nodes: NodeTable,
    updated_at: BTreeMap<PeerId, Instant>,
}

impl LiveTable {
    fn update(&mut self, view: &NodeView, style: Style) -> Option<String> {
        if view.has_left() {
            self.updated_at.remove(&view.id);
        } else {
            self.updated_at.insert(view.id, clock::now());
        }
        self.nodes.update(view, style)
    }

    fn draw(&self, screen: &mut Screen) -> Result<(), CliError> {
        if screen.json || !screen.is_terminal {
            return Ok(());
        }
        let (columns, _) = screen.terminal_size();
        let style = Style {
            columns: Some(columns),
            ..screen.style
        };
        let older = |id: &PeerId| {
            self.updated_at
                .get(id)
                .map_or(0, |taken| to_ms(clock::since(*taken)))
        };
        screen.redraw(&self.nodes.table(older, style))
    }
}
