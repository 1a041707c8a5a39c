//! Files to nodes and from nodes, valid and refused.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use swarm_tests::fleet::{Fleet, pseudo_random_bytes, str_field};

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

#[test]
fn files_are_sent_and_fetched() {
    let fleet = Fleet::linked(2);
    let (station, field) = (&fleet.station, &fleet.test_dir);
    let roots = [&fleet.nodes[0].files_root, &fleet.nodes[1].files_root];

    // One file of whole chunks and a rest, with its mode.
    let content = pseudo_random_bytes(700 * 1024 + 13);
    let take = field.file("take1.csv", &content);
    std::fs::set_permissions(&take, PermissionsExt::from_mode(0o750)).expect("a mode");
    let ran = station
        .run(&["send", &path(&take), "all:files/shows/take1.csv"])
        .expect_status(0);
    assert_eq!(ran.json().len(), 2);
    for (node, root) in ["n1", "n2"].iter().zip(roots) {
        let value = &ran.line_of(node)["value"];
        assert_eq!(value["size"], content.len());
        let there = root.join("shows/take1.csv");
        assert!(std::fs::read(&there).expect("there") == content);
        assert_eq!(mode(&there), 0o750);
    }

    // It replaces the old file; an empty file is sent too.
    let empty = field.file("empty", b"");
    station
        .run(&["send", &path(&empty), "n1:files/shows/take1.csv"])
        .expect_status(0);
    assert_eq!(
        std::fs::read(roots[0].join("shows/take1.csv")).expect("there"),
        b""
    );

    // Several into a directory; one outcome for each file.
    let b = field.file("b.txt", b"bee");
    let ran = station
        .run(&["send", &path(&take), &path(&b), "n2:files/many/"])
        .expect_status(0);
    assert_eq!(ran.json().len(), 2);
    assert_eq!(std::fs::read(roots[1].join("many/b.txt")).expect("there"), b"bee");
    assert!(roots[1].join("many/take1.csv").is_file());

    // A different file to each node.
    let own = field.dir("own");
    std::fs::write(own.join("n1.csv"), "for n1").expect("written");
    std::fs::write(own.join("n2.csv"), "for n2").expect("written");
    station
        .run(&["send", "--per-node", &path(&own), "all:files/own.csv"])
        .expect_status(0);
    for (node, root) in ["n1", "n2"].iter().zip(roots) {
        let there = std::fs::read_to_string(root.join("own.csv")).expect("there");
        assert_eq!(there, format!("for {node}"));
    }
    std::fs::remove_file(own.join("n2.csv")).expect("there");
    let ran = station
        .run(&["send", "--per-node", &path(&own), "all:files/own.csv"])
        .expect_status(1);
    assert_eq!(
        (ran.outcome_of("n1"), ran.outcome_of("n2")),
        ("done".to_owned(), "failed".to_owned())
    );

    // Copies are named by node.
    let collected = field.path().join("collected");
    let ran = station
        .run(&["fetch", "all:files/own.csv", &path(&collected)])
        .expect_status(0);
    for node in ["n1", "n2"] {
        let copy = collected.join(format!("{node}-own.csv"));
        assert_eq!(
            std::fs::read_to_string(&copy).expect("there"),
            format!("for {node}")
        );
        assert_eq!(str_field(&ran.line_of(node)["value"], "path"), path(&copy));
    }
    std::fs::write(roots[1].join("big"), &content).expect("written");
    std::fs::set_permissions(roots[1].join("big"), PermissionsExt::from_mode(0o640)).expect("a mode");
    let ran = station
        .run(&["fetch", "all:files/big", &path(&collected)])
        .expect_status(1);
    assert_eq!(
        (ran.outcome_of("n1"), ran.outcome_of("n2")),
        ("failed".to_owned(), "done".to_owned())
    );
    assert!(std::fs::read(collected.join("n2-big")).expect("there") == content);
    assert_eq!(mode(&collected.join("n2-big")), 0o640);
    let leftovers: Vec<_> = std::fs::read_dir(&collected).expect("there").flatten().collect();
    assert_eq!(leftovers.len(), 3, "{leftovers:?}");
    for node in &fleet.nodes {
        assert_eq!(node.files().1, Vec::<String>::new());
    }
}

#[test]
fn paths_outside_the_roots_are_refused() {
    let fleet = Fleet::linked(1);
    let (station, field, root) = (&fleet.station, &fleet.test_dir, &fleet.nodes[0].files_root);
    let outside = field.dir("outside");
    std::fs::write(outside.join("secret"), "s").expect("written");
    symlink(&outside, root.join("way-out")).expect("a link");
    symlink(outside.join("secret"), root.join("secret-link")).expect("a link");
    let evil = path(&field.file("evil", b"evil"));
    let collected = path(&field.path().join("collected"));

    for dest in [
        "n1:nosuch/evil",
        "n1:files/way-out/evil",
        "n1:files/secret-link/evil",
    ] {
        let line = station.run(&["send", &evil, dest]).expect_status(1).line_of("n1");
        let state = str_field(&line, "state");
        assert!(matches!(state, "refused" | "failed"), "{dest}: {line}");
        assert!(!str_field(&line, "error").is_empty());
    }
    for from in [
        "n1:nosuch/x",
        "n1:files/way-out/secret",
        "n1:files/secret-link",
        "n1:files/none",
    ] {
        let line = station
            .run(&["fetch", from, &collected])
            .expect_status(1)
            .line_of("n1");
        assert!(
            matches!(str_field(&line, "state"), "refused" | "failed"),
            "{from}: {line}"
        );
    }
    // An invalid destination is a usage error.
    for dest in ["n1:files/../evil", "n1:/etc/evil", "n1:files//evil", "n1"] {
        station.run(&["send", &evil, dest]).expect_status(2);
    }
    // Programs that do not use the command line get the same refusal from the node.
    for path in [
        "files/../evil",
        "/etc/evil",
        "files/../../evil",
        "files/way-out/../evil",
    ] {
        let argument = format!("path={path}");
        let words = ["call", "n1", "filetransfer", "op=pull", &argument];
        let line = station.run(&words).expect_status(1).line_of("n1");
        assert_eq!(line["state"], "refused", "{path}: {line}");
    }
    // A symbolic link is not followed but replaced, as by rename(2).
    let ran = station.run(&["send", &evil, "n1:files/secret-link"]);
    assert_eq!(
        std::fs::read_to_string(outside.join("secret")).expect("there"),
        "s",
        "{ran:?}"
    );
    assert_eq!(std::fs::read_dir(&outside).expect("there").count(), 1);
    assert!(!field.path().join("evil2").exists());
    station
        .run(&["send", &path(&outside.join("none")), "n1:files/x"])
        .expect_status(2);
    station.run(&["ping"]).expect_status(0);
}
