//! What a person sees.

use std::fmt::Write;

use serde_json::json;

use crate::status::{PluginView, ServerState, ServerView, StatusView};

/// The name and the id, in groups and whole.
pub(super) fn id(name: Option<&str>, id: &str, json: bool) -> String {
    if json {
        return format!("{}\n", json!({ "name": name, "id": id }));
    }
    let mut text = String::new();
    if let Some(name) = name {
        text.push_str(&format!("name  {name}\n"));
    }
    text.push_str(&format!("id    {}\nwhole {id}\n", group_id(id)));
    text
}

/// As [`swarm_shared::proto::id::PeerId::short`] has it.
fn group_id(id: &str) -> String {
    let digits: Vec<char> = id.chars().take(16).collect();
    let groups: Vec<String> = digits.chunks(4).map(|group| group.iter().collect()).collect();
    groups.join("-")
}

/// The status, as a page or as one line of JSON.
pub(super) fn status(view: &StatusView, json: bool) -> anyhow::Result<String> {
    let mut text = String::new();
    if json {
        text = serde_json::to_string(view)?;
        text.push('\n');
        return Ok(text);
    }
    let id = group_id(&view.id);
    writeln!(
        text,
        "{} {id}, version {}, up {}",
        view.name,
        view.version,
        format_duration(view.uptime_s)
    )?;
    let none = "none: see `swarm-node join`";
    writeln!(text, "fleet    {}", view.fleet.as_deref().unwrap_or(none))?;
    writeln!(text, "listens  {}", view.listen.as_deref().unwrap_or("not yet"))?;
    writeln!(text, "config   {}", view.config)?;
    writeln!(text, "state    {}", view.state_dir)?;
    if let Some(problem) = &view.state_problem {
        writeln!(text, "         NOTHING CAN BE REMEMBERED: {problem}")?;
    }
    if let Some(fault) = view.journal.as_ref().and_then(|journal| journal.fault.as_ref()) {
        writeln!(text, "         WHAT ACTS IS REFUSED: {fault}")?;
    }
    if let Some(stopped) = &view.stopped {
        let state = if view.held { "HELD    " } else { "STOPPED " };
        writeln!(text, "{state} {stopped}; `ground-station release` ends it")?;
    }
    if let Some(lost_link) = &view.lost_link {
        writeln!(text, "link     {lost_link}")?;
    }
    match view.links.len() {
        0 => writeln!(text, "links    none")?,
        count => writeln!(text, "links    {count}")?,
    }
    for link in &view.links {
        let (name, id, kind, addr) = (&link.name, &link.id, &link.kind, &link.addr);
        writeln!(
            text,
            "         {kind} {name} {id} at {addr}, up {}",
            format_duration(link.up_s)
        )?;
    }
    for plugin in &view.plugins {
        writeln!(text, "plug-in  {}", describe_plugin(plugin))?;
    }
    if let Some(server) = &view.clever_show {
        writeln!(text, "show     {}", describe_server(server))?;
    }
    if let Some(refusal) = &view.last_refusal {
        writeln!(text, "refused  {refusal}")?;
    }
    if !view.warnings.is_empty() {
        writeln!(text, "warnings")?;
    }
    for warning in &view.warnings {
        writeln!(text, "  {warning}")?;
    }
    Ok(text)
}

/// A plug-in in one line.
fn describe_plugin(plugin: &PluginView) -> String {
    let mut parts = Vec::new();
    if let Some(pid) = plugin.pid {
        parts.push(format!("process {pid}"));
    }
    parts.push(format!("up {}", format_duration(plugin.up_s)));
    for (what, names) in [
        ("actions", &plugin.actions),
        ("requests", &plugin.requests),
        ("telemetry", &plugin.telemetry),
    ] {
        if !names.is_empty() {
            parts.push(format!("{what} {}", names.join(" ")));
        }
    }
    format!("{}: {}", plugin.name, parts.join(", "))
}

/// How it is with the clever-show server, in one line.
fn describe_server(server: &ServerView) -> String {
    let since = format_duration(server.since_s);
    let at = match server.addr {
        Some(addr) => format!("the clever-show server at {addr}"),
        None => "a clever-show server that announces itself".to_owned(),
    };
    let stands = match server.state {
        ServerState::Looking => format!("looking for {at}, for {since}"),
        ServerState::Joined => format!("joined with {at}, for {since}"),
        ServerState::Lost => format!("lost {at}, {since} ago; looking for it again"),
    };
    match &server.problem {
        Some(problem) => format!("{stands}: {problem}"),
        None => stands,
    }
}

fn format_duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {} min", minutes % 60),
        (days, hours, _) => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::LinkView;

    #[test]
    fn status_is_rendered_for_people_and_as_json() {
        let view = StatusView {
            stopped: Some("by station a1b2, number 7".to_owned()),
            held: false,
            stop_record_problem: None,
            journal_damage: None,
            lost_link: None,
            last_loss: None,
            journal: None,
            name: "drone-07".to_owned(),
            id: "a1b2c3d4e5f60718".repeat(4),
            version: "0.1.0".to_owned(),
            pid: 7,
            fleet: Some("0011-2233".to_owned()),
            listen: Some("0.0.0.0:7420".to_owned()),
            uptime_s: 93_784,
            links: vec![LinkView {
                name: "laptop".to_owned(),
                id: "ffff-0000-1111-2222".to_owned(),
                kind: "station".to_owned(),
                addr: "10.0.0.2:7421".to_owned(),
                up_s: 75,
                since: None,
            }],
            plugins: vec![PluginView {
                name: "lamp".to_owned(),
                pid: Some(42),
                actions: vec!["blink".to_owned(), "glow".to_owned()],
                requests: Vec::new(),
                telemetry: vec!["blinks".to_owned()],
                up_s: 61,
                since: None,
            }],
            clever_show: Some(ServerView {
                state: ServerState::Lost,
                addr: Some("10.0.0.9:25000".parse().expect("an address")),
                problem: Some("nothing listens at 10.0.0.9:25000".to_owned()),
                since_s: 61,
                since: None,
            }),
            config: "/etc/c.toml".to_owned(),
            state_dir: "/var/lib/swarm-node".to_owned(),
            state_problem: Some("Read-only file system".to_owned()),
            last_refusal: Some("wrong fleet".to_owned()),
            warnings: vec!["WARN careful".to_owned()],
        };
        insta::assert_snapshot!(status(&view, false).expect("text"), @r"
        drone-07 a1b2-c3d4-e5f6-0718, version 0.1.0, up 1 d 2 h
        fleet    0011-2233
        listens  0.0.0.0:7420
        config   /etc/c.toml
        state    /var/lib/swarm-node
                 NOTHING CAN BE REMEMBERED: Read-only file system
        STOPPED  by station a1b2, number 7; `ground-station release` ends it
        links    1
                 station laptop ffff-0000-1111-2222 at 10.0.0.2:7421, up 1 min
        plug-in  lamp: process 42, up 1 min, actions blink glow, telemetry blinks
        show     lost the clever-show server at 10.0.0.9:25000, 1 min ago; looking for it again: nothing listens at 10.0.0.9:25000
        refused  wrong fleet
        warnings
          WARN careful
        ");
        let line = status(&view, true).expect("a line");
        assert_eq!(serde_json::from_str::<StatusView>(&line).expect("a view"), view);
    }

    #[test]
    fn the_clever_show_server_state_is_rendered() {
        let server = |state, addr: Option<&str>| ServerView {
            state,
            addr: addr.map(|addr| addr.parse().expect("an address")),
            problem: None,
            since_s: 5,
            since: None,
        };
        let at = Some("10.0.0.9:25000");
        for (view, says) in [
            (
                server(ServerState::Looking, None),
                "looking for a clever-show server that announces itself, for 5 s",
            ),
            (
                server(ServerState::Looking, at),
                "looking for the clever-show server at 10.0.0.9:25000, for 5 s",
            ),
            (
                server(ServerState::Joined, at),
                "joined with the clever-show server at 10.0.0.9:25000, for 5 s",
            ),
        ] {
            assert_eq!(describe_server(&view), says);
        }
        let json = serde_json::to_string(&server(ServerState::Joined, at)).expect("text");
        assert_eq!(json, r#"{"state":"joined","addr":"10.0.0.9:25000","since_s":5}"#);
    }
}
