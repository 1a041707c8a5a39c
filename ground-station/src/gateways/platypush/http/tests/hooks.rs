//! Hooks: URLs that run one configured action.

use super::*;

#[tokio::test]
async fn hook_runs_its_configured_action() {
    let rig = Harness::new(HOOKS).await;
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        let path = "/hook/lights?colour=%2300ff00&other=x";
        let (status, body) = rig
            .send_json(request(method, path, &[("x-token", "not told")], ""))
            .await;
        assert_eq!(status, 200, "{body}");
        let kwargs = json!({"color": "#00ff00", "level": 3});
        let wanted = json!({
            "status": "ok", "hook": "lights", "method": method, "data": null,
            "args": {"colour": "#00ff00", "other": "x"}, "headers": {"host": "gateway"},
            "output": {"args": [], "kwargs": kwargs},
        });
        assert_eq!(body, wanted);
    }
    let path = "/hook/lights?colour=%2300ff00";
    for (kind, body, data) in [
        ("application/json", "{\"level\": 7}", json!({"level": 7})),
        (
            "application/x-www-form-urlencoded",
            "level=7",
            json!({"level": "7"}),
        ),
    ] {
        let (status, answer) = rig
            .send_json(request("POST", path, &[("content-type", kind)], body))
            .await;
        assert_eq!((status, &answer["data"]), (200, &data), "{answer}");
        assert_eq!(answer["output"]["kwargs"]["level"], 7);
    }
    let (status, answer) = rig.send_json(request("POST", path, &[], "plain text")).await;
    assert_eq!((status, &answer["data"]), (200, &json!("plain text")));
}

#[tokio::test]
async fn hook_errors_name_the_parameter() {
    let rig = Harness::new(HOOKS).await;
    let json = [("content-type", "application/json")];
    let token = [("x-token", "fedcba9876543210")];
    for (method, path, headers, body, wanted) in [
        ("GET", "/hook/nobody", &[][..], "", 404),
        ("GET", "/hook/lights", &[], "", 422),
        ("GET", "/hook/lights?colour=red", &[], "", 422),
        ("POST", "/hook/lights?colour=%23000000", &json, "{", 400),
        ("GET", "/hook/guarded", &token, "", 405),
        ("POST", "/hook/guarded", &[], "", 401),
        (
            "POST",
            "/hook/guarded",
            &[("x-token", "fedcba9876543211")],
            "",
            401,
        ),
        ("POST", "/hook/guarded", &token, "", 200),
        (
            "POST",
            "/hook/guarded",
            &[("authorization", "Bearer fedcba9876543210")],
            "",
            200,
        ),
        ("GET", "/hook/broken", &[], "", 502),
    ] {
        let (status, body) = rig.send_json(request(method, path, headers, body)).await;
        assert_eq!(status, wanted, "{method} {path} {headers:?}: {body}");
        assert!(status == 200 || body["code"] == wanted, "{body}");
    }
}

#[tokio::test]
async fn impossible_hook_prevents_opening() {
    for (allow, hook, good) in [
        ("[]", "led", false),
        ("[\"led\"]", "led", true),
        ("[]", "ping", true),
        ("[]", "station.nodes", true),
        ("[\"station.*\"]", "station.stop", true),
        ("[]", "station.stop", false),
        ("[\"shell.exec\"]", "shell.exec", false),
        ("[\"station.*\"]", "station.shutdown", false),
        ("[\"socktools.send\"]", "socktools.send", false),
    ] {
        let lines = format!("allow = {allow}\n[gateways.platypush_http.hooks.x]\naction = \"{hook}\"");
        let rig = Harness::new(&lines).await;
        let checked = rig.app.check_hooks();
        assert_eq!(checked.is_ok(), good, "{hook}: {checked:?}");
    }
    let lines = "allow = [\"station.stop\"]\n[gateways.platypush_http.hooks.x]\naction = \"station.stop\"\n\
         [gateways.platypush_http.hooks.x.parameters]\nwhy = { from = \"const\", value = \"fire\" }";
    let rig = Harness::new(lines).await;
    let fault = rig.app.check_hooks().expect_err("it takes nothing");
    assert_eq!(fault, "hook x: station.stop takes nothing, and no why");
    let target: Vec<String> = (0..65).map(|number| format!("n{number}")).collect();
    let lines = format!(
        "[gateways.platypush_http.hooks.x]\naction = \"ping\"\ntarget = \"{}\"",
        target.join(",")
    );
    let fault = Harness::new(&lines)
        .await
        .app
        .check_hooks()
        .expect_err("too many");
    assert!(
        fault.starts_with("hook x: a selector has at most 64 terms"),
        "{fault}"
    );
}
