//! Users, tokens, logins, and whoever guesses.

use super::*;

async fn log_in(rig: &Rig, password: &str) -> Response<Body> {
    let body = format!(
        "username=ann&password={}&redirect=/dashboard/x",
        password.replace(' ', "+")
    );
    rig.send(request("POST", "/login", &[], body)).await
}

/// The cookies that an answer sets.
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
async fn a_password_gets_a_token_that_ends_with_its_user() {
    let rig = Rig::with_user("").await;
    let (status, body) = rig.ask(auth(PASSWORD)).await;
    assert_eq!((status, &body["user"]), (200, &json!("ann")), "{body}");
    let token = bearer(body["token"].as_str().expect("a text"));
    let ping = json!({"action": "ping"});
    let (status, _) = rig.ask(execute(&[("authorization", &token)], &ping)).await;
    assert_eq!(status, 200);
    let stored = rig.app.store.tokens(0).await.expect("read");
    assert_eq!((stored.len(), stored[0].user.as_str()), (1, "ann"));
    let days = (stored[0].expires_ms - stored[0].made_ms) / 86_400_000;
    assert_eq!(days, 30);
    assert!(
        rig.app
            .store
            .remove_user("ann".to_owned())
            .await
            .expect("removed")
    );
    let (status, _) = rig.ask(execute(&[("authorization", &token)], &ping)).await;
    assert_eq!(status, 412, "and nobody is left");
    for (body, wanted) in [
        ("{}", 400),
        ("x", 400),
        ("{\"username\": 1, \"password\": \"x\"}", 400),
    ] {
        let (status, _) = rig.ask(request("POST", "/auth", &[], body)).await;
        assert_eq!(status, wanted, "{body}");
    }
    for days in [json!(0), json!(4_000), json!("x"), json!(1.5)] {
        let body = json!({"username": "ann", "password": PASSWORD, "expiry_days": days}).to_string();
        let (status, _) = rig.ask(request("POST", "/auth", &[], body)).await;
        assert_eq!(status, 400, "{days}");
    }
}

#[tokio::test]
async fn a_known_password_is_forgotten_when_it_changes() {
    let rig = Rig::with_user("").await;
    for _ in 0..3 {
        assert_eq!(rig.ask(auth(PASSWORD)).await.0, 200);
    }
    let kept = users::Desk::default()
        .hash(Password::new("another one"))
        .await
        .expect("hashed");
    rig.app
        .store
        .put_user("ann".to_owned(), kept, 1)
        .await
        .expect("kept");
    assert_eq!(rig.ask(auth(PASSWORD)).await.0, 401);
    assert_eq!(rig.ask(auth("another one")).await.0, 200);
}

/// Two passwords are looked at at once, so that the third waits while it is changed.
#[tokio::test]
async fn a_password_that_changes_while_it_is_looked_at_gets_no_token() {
    let rig = Rig::with_user("").await;
    let other = users::Desk::default().hash(Password::new("another one")).await;
    let ask = |password: &str| {
        let (router, mut asked) = (rig.router.clone(), auth(password));
        asked
            .extensions_mut()
            .insert(Guest::from(([10, 0, 0, 1], 1).into()));
        tokio::spawn(router.oneshot(asked))
    };
    let before: Vec<_> = (0..4).map(|_| ask("guess")).collect();
    let third = ask(PASSWORD);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    // It has read what is kept by now, most likely; and if not, it is wrong all the same.
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
async fn whoever_guesses_is_slowed_and_others_are_not() {
    let rig = Rig::with_user(&format!("token = \"{TOKEN}\"")).await;
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(rig.ask(auth("guess")).await.0);
    }
    assert_eq!(
        (&statuses[..10], &statuses[10..]),
        (&[401; 10][..], &[429; 2][..])
    );
    // Not even the right one; that is the point.
    let response = rig.send(auth(PASSWORD)).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    let elsewhere = rig.send_from("10.0.0.9", auth(PASSWORD)).await;
    assert_eq!(elsewhere.status(), StatusCode::OK);
    // A good token passes from the very same address.
    let ping = json!({"action": "ping"});
    assert_eq!(rig.ask(execute(&[("x-token", TOKEN)], &ping)).await.0, 200);
    let audit = rig.closed().await;
    let refused = audit
        .iter()
        .filter(|entry| entry.what == "login" && entry.outcome.contains("not done"));
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
async fn an_address_that_waits_does_not_find_out_a_password_that_is_known() {
    let rig = Rig::with_user("").await;
    // Known to be right, from another address: no more than a comparison from now on.
    assert_eq!(rig.send_from("10.0.0.9", auth(PASSWORD)).await.status(), 200);
    for _ in 0..10 {
        assert_eq!(rig.ask(auth("guess")).await.0, 401);
    }
    let basic = format!("Basic {}", BASE64.encode(format!("ann:{PASSWORD}").as_bytes()));
    let ping = json!({"action": "ping"});
    assert_eq!(rig.ask(execute(&[("authorization", &basic)], &ping)).await.0, 429);
    assert_eq!(rig.ask(auth(PASSWORD)).await.0, 429);
    assert_eq!(rig.send_from("10.0.0.9", auth(PASSWORD)).await.status(), 200);
}

#[tokio::test]
async fn the_token_of_a_hook_is_not_guessed_faster_than_others() {
    let lines = "[doors.platypush_http.hooks.x]\naction = \"ping\"\ntoken = \"fedcba9876543210\"";
    let rig = Rig::with_user(lines).await;
    let call = |token: &str| rig.ask(request("POST", "/hook/x", &[("x-token", token)], ""));
    for _ in 0..10 {
        assert_eq!(call("guess").await.0, 401);
    }
    assert_eq!(call("guess").await.0, 429);
    assert_eq!(rig.ask(auth(PASSWORD)).await.0, 429, "it is one brake");
    assert_eq!(call("fedcba9876543210").await.0, 200);
}

#[tokio::test]
async fn a_login_is_a_cookie_that_no_script_reads_and_no_other_page_uses() {
    let rig = Rig::with_user("").await;
    let page = rig.send(request("GET", "/login?redirect=//evil", &[], "")).await;
    assert!(
        !String::from_utf8(whole(page).await)
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
        (&[cookie, ("x-csrf-token", &csrf), ("origin", "http://door")], 200),
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
        assert_eq!(rig.ask(execute(headers, &ping)).await.0, wanted, "{headers:?}");
    }
    // What only reads needs no more than the cookie.
    let (status, page) = rig.ask(request("GET", "/dashboard/x", &[cookie], "")).await;
    assert!(
        status == 200 && page.as_str().expect("a page").contains(&csrf),
        "{page}"
    );
    // A login is no token for programs.
    let as_token = bearer(value(&set, "session_token"));
    assert_eq!(
        rig.ask(execute(&[("authorization", &as_token)], &ping)).await.0,
        401
    );
    let form = format!("csrf_token={csrf}");
    assert_eq!(rig.ask(request("POST", "/logout", &[cookie], "")).await.0, 403);
    assert_eq!(rig.ask(request("POST", "/logout", &[cookie], form)).await.0, 303);
    assert_eq!(
        rig.ask(request("GET", "/dashboard/x", &[cookie], "")).await.0,
        401
    );
}

#[tokio::test]
async fn a_password_that_a_browser_remembers_is_not_for_other_pages() {
    let rig = Rig::with_user("").await;
    let basic = format!("Basic {}", BASE64.encode(format!("ann:{PASSWORD}").as_bytes()));
    let basic = ("authorization", basic.as_str());
    let ping = json!({"action": "ping"});
    assert_eq!(rig.ask(execute(&[basic], &ping)).await.0, 200);
    for other in [
        ("origin", "https://evil"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        assert_eq!(rig.ask(execute(&[basic, other], &ping)).await.0, 403, "{other:?}");
        let upgrade = request("GET", "/ws/events", &[basic, other, ("upgrade", "websocket")], "");
        assert_eq!(rig.ask(upgrade).await.0, 403, "{other:?}");
    }
    let login = request(
        "POST",
        "/login",
        &[("origin", "https://evil")],
        "username=ann&password=x",
    );
    assert_eq!(rig.ask(login).await.0, 403);
}

#[tokio::test]
async fn whoever_uses_the_form_is_told_on_a_page() {
    let rig = Rig::with_user("").await;
    for number in 0..11 {
        let answer = log_in(&rig, "wrong").await;
        let (status, why) = if number < 10 {
            (StatusCode::UNAUTHORIZED, "wrong name or password")
        } else {
            (StatusCode::TOO_MANY_REQUESTS, "try again in 1 s")
        };
        assert_eq!(answer.status(), status);
        assert!(!answer.headers().contains_key(header::WWW_AUTHENTICATE));
        let page = String::from_utf8(whole(answer).await).expect("a text");
        assert!(page.contains("<form") && page.contains(why), "{page}");
    }
}

#[tokio::test]
async fn a_browser_is_led_to_the_form() {
    let rig = Rig::with_user("").await;
    let response = rig
        .send(request("GET", "/dashboard/x", &[("accept", "text/html,*/*")], ""))
        .await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()[header::LOCATION]),
        (303, &"/login?redirect=/dashboard/x".parse().expect("a value"))
    );
    assert_eq!(rig.ask(request("GET", "/dashboard/x", &[], "")).await.0, 401);
    assert_eq!(
        rig.ask(request("GET", "/dashboard/%3Cb%3E", &[], "")).await.0,
        404
    );
}
