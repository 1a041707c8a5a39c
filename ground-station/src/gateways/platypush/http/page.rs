//! Pages for people, without scripts, and `/openapi.json` for programs.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use swarm_shared::proto::selector::Selector;

use super::{Shared, hook};
use crate::gateways::access::RequestError;
use crate::http::auth::{Caller, Credential};
use crate::http::error::HttpError;
use swarm_shared::api::NodeView;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}\
    table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3rem .8rem .3rem 0;\
    border-bottom:1px solid #ccc}label{display:block;margin:.5rem 0}";

/// `GET /`: redirects to the dashboard.
pub(super) async fn home() -> Redirect {
    Redirect::to("/dashboard/main")
}

/// `GET /dashboard/{name}`: a table of all nodes.
pub(super) async fn dashboard(
    State(app): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    caller: Result<Caller, HttpError>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let Path(name) = name?;
    if !hook::is_name(&name) {
        let text = "a dashboard's name has 1 to 64 letters, digits and . _ -";
        return Err(HttpError::new(StatusCode::NOT_FOUND, text));
    }
    let caller = match caller {
        Ok(caller) => caller,
        Err(error) if error.status() == StatusCode::UNAUTHORIZED && is_browser(&headers) => {
            let mut response = Redirect::to(&format!("/login?redirect=/dashboard/{name}")).into_response();
            // The redirect is a refusal, and audited as one.
            if let Some(unaudited) = error.unaudited() {
                response.extensions_mut().insert(unaudited);
            }
            return Ok(response);
        }
        Err(error) => return Err(error),
    };
    let access = app.handler.access();
    let nodes = access.nodes(&caller.client, Selector::all()).await;
    let unavailable =
        |why: RequestError| HttpError::new(StatusCode::SERVICE_UNAVAILABLE, why.to_string()).audited();
    let nodes = nodes.map_err(unavailable)?;
    let csrf = match &caller.credential {
        Credential::Session { csrf, .. } => Some(csrf.as_str()),
        Credential::Password | Credential::Token => None,
    };
    Ok(Html(render_dashboard(&app.name, &name, &nodes, csrf)).into_response())
}

fn is_browser(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT);
    accept
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

fn render_dashboard(station: &str, name: &str, nodes: &[NodeView], csrf: Option<&str>) -> String {
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
                stop_label(node),
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
    render_page(&format!("{name} – {station}"), &body)
}

/// The mark of a stopped node, as the verb `nodes` prints it.
fn stop_label(node: &NodeView) -> &'static str {
    match (&node.stopped, node.stop_unconfirmed) {
        (Some(_), _) => "stopped",
        (None, Some(_)) => "STOP?",
        (None, None) => "",
    }
}

/// The login form, with the path to go to afterwards and the error of the last attempt.
pub(super) fn render_login(station: &str, to: &str, fault: Option<&str>) -> String {
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
    render_page(&format!("log in – {station}"), &body)
}

fn render_page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\n<body>\n{body}</body>\n\
         </html>\n",
        escape(title)
    )
}

/// Escapes text for HTML.
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

/// `GET /openapi.json`: the description of all routes.
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], super::OPENAPI).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_escape_foreign_text() {
        let page = render_login("st", "/\"><script>", Some("<b>"));
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
        assert!(page.contains("/&quot;&gt;&lt;script&gt;"), "{page}");
        let page = render_dashboard("<st>", "<n>", &[], Some("'\""));
        assert!(!page.contains("<st>") && !page.contains("<n>"), "{page}");
        assert!(serde_json::from_str::<serde_json::Value>(super::super::OPENAPI).is_ok());
    }

    #[test]
    fn dashboard_marks_unconfirmed_stops() {
        let view = serde_json::json!({
            "node": "n1", "id": "07".repeat(32), "state": "online", "kind": "node", "address": null,
            "last_heard_ms": 5, "software": null, "stop_unconfirmed": 1,
        });
        let view: NodeView = serde_json::from_value(view).expect("a view");
        let page = render_dashboard("st", "n", &[view], None);
        assert!(page.contains("<td>STOP?</td>"), "{page}");
    }
}
