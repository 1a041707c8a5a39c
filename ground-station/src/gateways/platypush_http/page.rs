//! Plain pages for people, without any script.

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use swarm_shared::proto::selector::Selector;

use super::auth::By;
use super::error::Refusal;
use super::serve::Guest;
use super::{Shared, hook};
use crate::fleet::NodeView;
use crate::gateways::access::NotDone;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}\
    table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .8rem .3rem 0;\
    border-bottom:1px solid #ccc}label{display:block;margin:.5rem 0}";

/// `GET /`: the dashboard.
pub(super) async fn home() -> Redirect {
    Redirect::to("/dashboard/main")
}

/// `GET /dashboard/{name}`: who is there.
pub(super) async fn dashboard(
    State(app): State<Shared>,
    Extension(guest): Extension<Guest>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let Path(name) = name?;
    let (parts, _) = request.into_parts();
    if !hook::is_name(&name) {
        let text = "a dashboard's name has 1 to 64 letters, digits and . _ -";
        return Err(Refusal::new(StatusCode::NOT_FOUND, text));
    }
    let caller = match app.gatekeeper.caller(&parts, guest.addr().ip(), None).await {
        Ok(caller) => caller,
        Err(refusal) if refusal.status() == StatusCode::UNAUTHORIZED && is_browser(&parts) => {
            let mut response = Redirect::to(&format!("/login?redirect=/dashboard/{name}")).into_response();
            // It is refused all the same.
            if let Some(unnoted) = refusal.unnoted() {
                response.extensions_mut().insert(unnoted);
            }
            return Ok(response);
        }
        Err(refusal) => return Err(refusal),
    };
    let guard = app.desk.guard();
    let nodes = guard.nodes(&caller.visitor, Selector::all()).await;
    let unavailable = |why: NotDone| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()).noted();
    let nodes = nodes.map_err(unavailable)?;
    let csrf = match &caller.by {
        By::Session { csrf, .. } => Some(csrf.as_str()),
        By::Password | By::Token => None,
    };
    Ok(Html(show(&app.name, &name, &nodes, csrf)).into_response())
}

fn is_browser(parts: &axum::http::request::Parts) -> bool {
    let accept = parts.headers.get(header::ACCEPT);
    accept
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

fn show(station: &str, name: &str, nodes: &[NodeView], csrf: Option<&str>) -> String {
    let rows: String = nodes
        .iter()
        .map(|node| {
            let tags: Vec<String> = node
                .tags
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let cells = [
                node.node.as_str(),
                node.state.as_str(),
                &node.id.short(),
                &tags.join(" "),
                stop(node),
            ];
            let cells: String = cells
                .iter()
                .map(|cell| format!("<td>{}</td>", escape(cell)))
                .collect();
            format!("<tr>{cells}</tr>\n")
        })
        .collect();
    let logout = csrf.map_or_else(String::new, |csrf| {
        let csrf = escape(csrf);
        format!(
            "<form method=\"post\" action=\"/logout\"><input type=\"hidden\" name=\"csrf_token\" value=\"{csrf}\">\
             <button>log out</button></form>\n"
        )
    });
    let body = format!(
        "<h1>{}</h1>\n<p>{} nodes of {}</p>\n<table>\n<tr><th>node</th><th>state</th><th>id</th><th>tags</th>\
         <th></th></tr>\n{rows}</table>\n{logout}",
        escape(name),
        nodes.len(),
        escape(station),
    );
    whole(&format!("{name} – {station}"), &body)
}

/// In the words of `nodes`.
fn stop(node: &NodeView) -> &'static str {
    match (&node.stopped, node.stop_unconfirmed) {
        (Some(_), _) => "stopped",
        (None, Some(_)) => "STOP?",
        (None, None) => "",
    }
}

/// A form to log in with.
pub(super) fn login(station: &str, to: &str, fault: Option<&str>) -> String {
    let fault = fault.map_or_else(String::new, |fault| {
        format!("<p role=\"alert\">{}</p>\n", escape(fault))
    });
    let body = format!(
        "<h1>{}</h1>\n{fault}<form method=\"post\" action=\"/login\">\n\
         <label>name <input name=\"username\" autocomplete=\"username\" required></label>\n\
         <label>password <input name=\"password\" type=\"password\" autocomplete=\"current-password\" required></label>\n\
         <input type=\"hidden\" name=\"redirect\" value=\"{}\">\n<button>log in</button>\n</form>\n",
        escape(station),
        escape(to),
    );
    whole(&format!("log in – {station}"), &body)
}

fn whole(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\n<body>\n{body}</body>\n\
         </html>\n",
        escape(title)
    )
}

/// A text that is nothing but text in a page.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// `GET /openapi.json`: this door, for programs.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::OPENAPI).into_response()
}

/// What a page may do in a browser: nothing but show itself and send its forms here.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; \
    base-uri 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_somebody_else_wrote_becomes_part_of_a_page() {
        let page = login("st", "/\"><script>", Some("<b>"));
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
        assert!(page.contains("/&quot;&gt;&lt;script&gt;"), "{page}");
        let page = show("<st>", "<n>", &[], Some("'\""));
        assert!(!page.contains("<st>") && !page.contains("<n>"), "{page}");
        assert!(serde_json::from_str::<serde_json::Value>(super::super::OPENAPI).is_ok());
    }

    #[test]
    fn a_node_that_has_not_confirmed_a_stop_does_not_look_as_if_nobody_had_stopped_it() {
        let view = serde_json::json!({
            "node": "n1", "id": "07".repeat(32), "state": "online", "kind": "node", "address": null,
            "last_heard_ms": 5, "software": null, "stop_unconfirmed": 1,
        });
        let view: NodeView = serde_json::from_value(view).expect("a view");
        let page = show("st", "n", &[view], None);
        assert!(page.contains("<td>STOP?</td>"), "{page}");
    }
}
