//! Users, tokens, logins, and the throttle of failed logins.

use super::*;

async fn log_in(rig: &Harness, password: &str) -> Response<Body> {
    let body = format!(
        "username=ann&password={}&redirect=/dashboard/x",
        password.replace(' ', "+")
    );
    rig.send(request("POST", "/login", &[], body)).await
}

/// The cookies that a response sets.
fn cookies(response: &Response<Body>) -> Vec<String> {
    let all = response.headers().get_all(header::SET_COOKIE).into_iter();
    all.map(|value| value.to_str().expect("a text").to_owned())
        .collect()
}

fn value<'a>(cookies: &'a [String], name: &str) -> &'a str {
    let found = cookies
        .iter()
        .find_map(|cookie| cookie.strip_prefix(&format!("{name}=")));
    found.and_then(|rest| rest.split(';').next()).expect("set")
}

fn auth(password: &str) -> Request<Body> {
    request(
        "POST",
        "/auth",
        &[],
        json!({"username": "ann", "password": password}).to_string(),
    )
}

#[tokio::test]
async fn auth_token_is_revoked_with_its_user() {
    let rig = Harness::with_user("").await;
    let (status, body) = rig.send_json(auth(PASSWORD)).await;
    assert_eq!((status, &body["user"]), (200, &json!("ann")), "{body}");
    let token = bearer(body["token"].as_str().expect("a text"));
    let ping = json!({"action": "ping"});
    let (status, _) = rig.send_json(execute(&[("authorization", &token)], &ping)).await;
    assert_eq!(status, 200);
    let stored = rig.app.store.tokens(0).await.expect("read");
    assert_eq!((stored.len(), stored[0].user.as_str()), (1, "ann"));
    let days = (stored[0].expires_ms - stored[0].created_ms) / 86_400_000;
    assert_eq!(days, 30);
    assert!(
        rig.app
            .store
            .remove_user("ann".to_owned())
            .await
            .expect("removed")
    );
    let (status, _) = rig.send_json(execute(&[("authorization", &token)], &ping)).await;
    assert_eq!(status, 412, "no user is left");
    for (body, wanted) in [
        ("{}", 400),
        ("x", 400),
        ("{\"username\": 1, \"password\": \"x\"}", 400),
    ] {
        let (status, _) = rig.send_json(request("POST", "/auth", &[], body)).await;
        assert_eq!(status, wanted, "{body}");
    }
    for days in [json!(0), json!(4_000), json!("x"), json!(1.5)] {
        let body = json!({"username": "ann", "password": PASSWORD, "expiry_days": days}).to_string();
        let (status, _) = rig.send_json(request("POST", "/auth", &[], body)).await;
        assert_eq!(status, 400, "{days}");
    }
}

#[tokio::test]
async fn cached_password_is_invalid_after_a_change() {
    let rig = Harness::with_user("").await;
    for _ in 0..3 {
        assert_eq!(rig.send_json(auth(PASSWORD)).await.0, 200);
    }
    let kept = users::PasswordChecker::default()
        .hash(Password::new("another one"))
        .await
        .expect("hashed");
    rig.app
        .store
        .put_user("ann".to_owned(), kept, 1)
        .await
        .expect("kept");
    assert_eq!(rig.send_json(auth(PASSWORD)).await.0, 401);
    assert_eq!(rig.send_json(auth("another one")).await.0, 200);
}

/// Two passwords are checked at the same time, so the third waits while the password changes.
#[tokio::test]
async fn password_changed_during_login_gets_no_token() {
    let rig = Harness::with_user("").await;
    let other = users::PasswordChecker::default()
        .hash(Password::new("another one"))
        .await;
    let ask = |password: &str| {
        let (router, mut asked) = (rig.router.clone(), auth(password));
        asked
            .extensions_mut()
            .insert(ClientInfo::for_test(([10, 0, 0, 1], 1).into()));
        tokio::spawn(router.oneshot(asked))
    };
    let before: Vec<_> = (0..4).map(|_| ask("guess")).collect();
    let third = ask(PASSWORD);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    // Most likely it has read the stored hash by now; if not, the password is wrong either way.
    rig.app
        .store
        .put_user("ann".to_owned(), other.expect("hashed"), 1)
        .await
        .expect("kept");
    let answer = third.await.expect("runs").expect("never fails");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    for guess in before {
        guess.await.expect("runs").expect("never fails");
    }
    assert_eq!(rig.app.store.tokens(0).await.expect("read").len(), 0);
}

#[tokio::test]
async fn password_guessing_is_throttled_per_address() {
    let rig = Harness::with_user(&format!("token = \"{TOKEN}\"")).await;
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(rig.send_json(auth("guess")).await.0);
    }
    assert_eq!(
        (&statuses[..10], &statuses[10..]),
        (&[401; 10][..], &[429; 2][..])
    );
    // Not even the right password.
    let response = rig.send(auth(PASSWORD)).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    let elsewhere = rig.send_from("10.0.0.9", auth(PASSWORD)).await;
    assert_eq!(elsewhere.status(), StatusCode::OK);
    // A valid token passes from the same address.
    let ping = json!({"action": "ping"});
    assert_eq!(rig.send_json(execute(&[("x-token", TOKEN)], &ping)).await.0, 200);
    let audit = rig.shut_down().await;
    let refused = audit
        .iter()
        .filter(|entry| entry.action == "login" && entry.outcome.contains("not done"));
    let refused: Vec<&str> = refused.map(|entry| entry.outcome.as_str()).collect();
    let count = |why: &str| refused.iter().filter(|told| told.contains(why)).count();
    assert_eq!(
        (
            count("wrong name or password"),
            count("too many wrong passwords"),
            refused.len()
        ),
        (2, 2, 4),
        "of each the first, and all others: {refused:?}"
    );
}

#[tokio::test]
async fn throttled_address_cannot_probe_cached_passwords() {
    let rig = Harness::with_user("").await;
    // Verified from another address, so that it is remembered.
    assert_eq!(rig.send_from("10.0.0.9", auth(PASSWORD)).await.status(), 200);
    for _ in 0..10 {
        assert_eq!(rig.send_json(auth("guess")).await.0, 401);
    }
    let basic = format!("Basic {}", BASE64.encode(format!("ann:{PASSWORD}").as_bytes()));
    let ping = json!({"action": "ping"});
    assert_eq!(
        rig.send_json(execute(&[("authorization", &basic)], &ping))
            .await
            .0,
        429
    );
    assert_eq!(rig.send_json(auth(PASSWORD)).await.0, 429);
    assert_eq!(rig.send_from("10.0.0.9", auth(PASSWORD)).await.status(), 200);
}

#[tokio::test]
async fn hook_token_guessing_is_throttled() {
    let lines = "[gateways.platypush_http.hooks.x]\naction = \"ping\"\ntoken = \"fedcba9876543210\"";
    let rig = Harness::with_user(lines).await;
    let call = |token: &str| rig.send_json(request("POST", "/hook/x", &[("x-token", token)], ""));
    for _ in 0..10 {
        assert_eq!(call("guess").await.0, 401);
    }
    assert_eq!(call("guess").await.0, 429);
    assert_eq!(rig.send_json(auth(PASSWORD)).await.0, 429, "it is one brake");
    assert_eq!(call("fedcba9876543210").await.0, 200);
}

#[tokio::test]
async fn session_cookie_is_http_only_and_needs_csrf_token() {
    let rig = Harness::with_user("").await;
    let page = rig.send(request("GET", "/login?redirect=//evil", &[], "")).await;
    assert!(
        !String::from_utf8(body_bytes(page).await)
            .expect("a text")
            .contains("evil")
    );
    let refused = log_in(&rig, "wrong").await;
    assert_eq!(
        (refused.status(), cookies(&refused).len()),
        (StatusCode::UNAUTHORIZED, 0)
    );
    let response = log_in(&rig, PASSWORD).await;
    assert_eq!(
        (response.status(), &response.headers()[header::LOCATION]),
        (StatusCode::SEE_OTHER, &"/dashboard/x".parse().expect("a value"))
    );
    let set = cookies(&response);
    assert!(
        set[0].contains("; HttpOnly") && set.iter().all(|cookie| cookie.contains("; SameSite=Strict")),
        "{set:?}"
    );
    let cookie = format!("other=1; session_token={}", value(&set, "session_token"));
    let csrf = value(&set, "csrf_token").to_owned();
    let ping = json!({"action": "ping"});
    let cookie = ("cookie", cookie.as_str());
    for (headers, wanted) in [
        (&[cookie][..], 403),
        (&[cookie, ("x-csrf-token", "x")], 403),
        (&[cookie, ("upgrade", "websocket")], 403),
        (&[cookie, ("x-csrf-token", &csrf)], 200),
        (
            &[cookie, ("x-csrf-token", &csrf), ("origin", "http://gateway")],
            200,
        ),
        (&[cookie, ("x-csrf-token", &csrf), ("origin", "http://evil")], 403),
        (&[cookie, ("x-csrf-token", &csrf), ("origin", "null")], 403),
        (
            &[cookie, ("x-csrf-token", &csrf), ("sec-fetch-site", "cross-site")],
            403,
        ),
        (
            &[cookie, ("x-csrf-token", &csrf), ("sec-fetch-site", "same-origin")],
            200,
        ),
        (&[("cookie", "session_token=x"), ("x-csrf-token", &csrf)], 401),
    ] {
        assert_eq!(
            rig.send_json(execute(headers, &ping)).await.0,
            wanted,
            "{headers:?}"
        );
    }
    // Requests that read need the cookie only.
    let (status, page) = rig.send_json(request("GET", "/dashboard/x", &[cookie], "")).await;
    assert!(
        status == 200 && page.as_str().expect("a page").contains(&csrf),
        "{page}"
    );
    // A login's cookie is no token.
    let as_token = bearer(value(&set, "session_token"));
    assert_eq!(
        rig.send_json(execute(&[("authorization", &as_token)], &ping))
            .await
            .0,
        401
    );
    let form = format!("csrf_token={csrf}");
    assert_eq!(
        rig.send_json(request("POST", "/logout", &[cookie], "")).await.0,
        403
    );
    assert_eq!(
        rig.send_json(request("POST", "/logout", &[cookie], form)).await.0,
        303
    );
    assert_eq!(
        rig.send_json(request("GET", "/dashboard/x", &[cookie], ""))
            .await
            .0,
        401
    );
}

#[tokio::test]
async fn basic_auth_from_another_site_is_refused() {
    let rig = Harness::with_user("").await;
    let basic = format!("Basic {}", BASE64.encode(format!("ann:{PASSWORD}").as_bytes()));
    let basic = ("authorization", basic.as_str());
    let ping = json!({"action": "ping"});
    assert_eq!(rig.send_json(execute(&[basic], &ping)).await.0, 200);
    for other in [
        ("origin", "https://evil"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        assert_eq!(
            rig.send_json(execute(&[basic, other], &ping)).await.0,
            403,
            "{other:?}"
        );
        let upgrade = request("GET", "/ws/events", &[basic, other, ("upgrade", "websocket")], "");
        assert_eq!(rig.send_json(upgrade).await.0, 403, "{other:?}");
    }
    let login = request(
        "POST",
        "/login",
        &[("origin", "https://evil")],
        "username=ann&password=x",
    );
    assert_eq!(rig.send_json(login).await.0, 403);
}

#[tokio::test]
async fn login_form_errors_are_shown_on_a_page() {
    let rig = Harness::with_user("").await;
    for number in 0..11 {
        let answer = log_in(&rig, "wrong").await;
        let (status, why) = if number < 10 {
            (StatusCode::UNAUTHORIZED, "wrong name or password")
        } else {
            (StatusCode::TOO_MANY_REQUESTS, "try again in 1 s")
        };
        assert_eq!(answer.status(), status);
        assert!(!answer.headers().contains_key(header::WWW_AUTHENTICATE));
        let page = String::from_utf8(body_bytes(answer).await).expect("a text");
        assert!(page.contains("<form") && page.contains(why), "{page}");
    }
}

#[tokio::test]
async fn browser_is_redirected_to_the_login_form() {
    let rig = Harness::with_user("").await;
    let response = rig
        .send(request("GET", "/dashboard/x", &[("accept", "text/html,*/*")], ""))
        .await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()[header::LOCATION]),
        (303, &"/login?redirect=/dashboard/x".parse().expect("a value"))
    );
    assert_eq!(
        rig.send_json(request("GET", "/dashboard/x", &[], "")).await.0,
        401
    );
    assert_eq!(
        rig.send_json(request("GET", "/dashboard/%3Cb%3E", &[], ""))
            .await
            .0,
        404
    );
}
