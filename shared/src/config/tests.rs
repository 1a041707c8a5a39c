use serde::Deserialize;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    name: Option<String>,
    port: u16,
    stations: Vec<String>,
    keepalive: Keepalive,
    lost_link: Option<LostLink>,
    tags: BTreeMap<String, String>,
    private: toml::Table,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct LostLink {
    #[serde(deserialize_with = "value::duration")]
    after: Duration,
    command: Program,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Program(Vec<String>);

impl Configuration for Config {
    const VARIABLE_PREFIX: &'static str = "TEST_";
    const RESERVED_VARIABLES: &'static [&'static str] = &["TEST_LOG"];

    fn check(&mut self, keys: &Keys<'_>) -> Result<(), KeyError> {
        if keys.has(&["tags", "row"]) && self.port == 1 {
            let message = "port 1 has no rows".to_owned();
            return Err(KeyError {
                key: vec!["tags".to_owned(), "row".to_owned()],
                message,
            });
        }
        Ok(())
    }
}

fn file() -> Origin {
    Origin::File(PathBuf::from("c.toml"), None)
}

fn owned(variables: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    let owned: Vec<_> = variables
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    owned.into_iter()
}

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    parse(text, &file(), owned(variables)).map_err(|error| error.to_string())
}

#[test]
fn keys_are_those_of_the_type() {
    let keepalive = vec![
        ("idle", Kind::Text),
        ("interval", Kind::Text),
        ("probes", Kind::Value),
    ];
    let lost_link = vec![("after", Kind::Text), ("command", Kind::Value)];
    let keys = vec![
        ("name", Kind::Text),
        ("port", Kind::Value),
        ("stations", Kind::List),
        ("keepalive", Kind::Table(keepalive)),
        ("lost_link", Kind::Table(lost_link)),
        ("tags", Kind::Map(Box::new(Kind::Text))),
        ("private", Kind::Map(Box::new(Kind::Any))),
    ];
    let schema = Kind::of::<Config>();
    assert_eq!(schema, Kind::Table(keys));
    assert_eq!(schema.at(&["lost_link", "command"]), Some(&Kind::Value));
    assert_eq!(schema.at(&["private", "a", "b"]), Some(&Kind::Any));
    assert_eq!(schema.at(&["name", "a"]), None);
    assert_eq!(schema.at(&["lost_link", "x"]), None);
}

#[test]
fn faults_name_line_key_and_remedy() {
    for (text, says) in [
        (
            "\n\nprot = 1",
            "c.toml:3: unknown key `prot`; did you mean `port`?",
        ),
        (
            "[keepalive]\nprobe = 3",
            "c.toml:2: unknown key `keepalive.probe`; did you mean `probes`?",
        ),
        (
            "idle = \"1s\"",
            "c.toml:1: unknown key `idle`; it is a key of [keepalive]",
        ),
        (
            "xyzzy = 1\nprot = 1",
            "c.toml:1: unknown key `xyzzy`; known here: name, port",
        ),
        ("port = 70000", "c.toml:1: port: invalid value: integer `70000`"),
        (
            "[keepalive]\nprobes = 0",
            "c.toml:2: keepalive.probes: 0 is not from 1 to 127",
        ),
        (
            "[keepalive]\nidle = \"0.5s\"",
            "c.toml:2: keepalive.idle: \"0.5s\" is not 1 to 32767 whole seconds",
        ),
        ("keepalive = 3", "c.toml:1: keepalive: invalid type: integer `3`"),
        (
            "\n[lost_link]\ncommand = [\"x\"]",
            "c.toml:2: lost_link: missing field `after`",
        ),
        (
            "port = 1\n[tags]\nrow = \"3\"",
            "c.toml:3: tags.row: port 1 has no rows",
        ),
        ("name = ", "c.toml:1: "),
        ("name = \"a\"\nname = \"b\"", "c.toml:2: duplicate key"),
    ] {
        let error = read(text, &[]).expect_err(text);
        assert!(error.starts_with(says), "{text:?}: {error}");
    }
}

#[test]
fn variables_override_the_file() {
    let text = "name = \"a\"\nport = 1\n[tags]\na = \"1\"\n[lost_link]\ncommand = [\"hold\"]";
    let variables = [
        ("TEST_NAME", "b, c"),
        ("TEST_STATIONS", "[::1]:1, two,"),
        ("TEST_TAGS", "{ b = \"2\" }"),
        ("TEST_LOST_LINK_AFTER", "0.5s"),
        ("TEST_KEEPALIVE_PROBES", "7"),
        ("TEST_LOG", "info"),
        ("OTHER", "x"),
    ];
    let config = read(text, &variables).expect("valid together");
    assert_eq!((config.name.as_deref(), config.port), (Some("b, c"), 1));
    assert_eq!(config.stations, ["[::1]:1", "two"]);
    assert_eq!(config.tags.into_keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(config.keepalive.probes, 7);
    let lost_link = config.lost_link.expect("half of it each");
    assert_eq!(lost_link.after, Duration::from_millis(500));
    let listed = read("", &[("TEST_STATIONS", "[\"one, two\"]")]).expect("as in TOML");
    assert_eq!(listed.stations, ["one, two"]);
}

#[test]
fn faults_of_variables_name_the_variable() {
    let text = "name = \"a\"\n[keepalive]\nidle = \"2s\"\n# more\n# and more";
    for (variable, value, says) in [
        ("TEST_PORT", "x", "TEST_PORT: port: invalid type: string \"x\""),
        (
            "TEST_PORT",
            "1\nname = 2",
            "TEST_PORT: port: invalid type: string",
        ),
        (
            "TEST_KEEPALIVE_IDLE",
            "soon",
            "TEST_KEEPALIVE_IDLE: keepalive.idle: \"soon\" is not a duration",
        ),
        (
            "TEST_TAGS",
            "row=3",
            "TEST_TAGS: \"row=3\" is not an inline table",
        ),
        ("TEST_TAGS", "{ row = 3 }", "TEST_TAGS: tags.row: invalid type"),
        (
            "TEST_LOST_LINK_COMMAND",
            "/bin/hold --now",
            "TEST_LOST_LINK_COMMAND: lost_link.command: invalid type",
        ),
        (
            "TEST_LOST_LINK_AFTER",
            "1s",
            "TEST_LOST_LINK_AFTER: lost_link: missing field `command`",
        ),
        ("TEST_KEEPALIVE_IDEL", "1s", "did you mean TEST_KEEPALIVE_IDLE?"),
        ("TEST_KEPALIVE_IDLE", "1s", "did you mean TEST_KEEPALIVE_IDLE?"),
        (
            "TEST_XYZZY",
            "1",
            "TEST_XYZZY: no key has this variable; that of a key is TEST_ and",
        ),
    ] {
        let error = read(text, &[(variable, value)]).expect_err(variable);
        let begins = format!("environment variable {variable}: ");
        assert!(error.starts_with(&begins) && error.contains(says), "{error}");
    }
    let fault = read("port = 70000", &[("TEST_NAME", "b")]).expect_err("in the file");
    assert!(fault.starts_with("c.toml:1: port"), "{fault}");
}

#[test]
fn best_effort_leaves_out_what_is_wrong() {
    let text = "name = \"a\"\nprot = 1\nport = 7\n[keepalive]\nidle = \"?\"\nprobes = 9\n[lost_link]\nafter = \"1s\"";
    let variables = [("TEST_STATIONS", "one"), ("TEST_KEEPALIVE_INTERVAL", "soon")];
    let (config, fault) = parse_best_effort::<Config>(text, &file(), owned(&variables));
    let fault = fault.expect("several").to_string();
    assert!(fault.starts_with("c.toml:2: unknown key `prot`"), "{fault}");
    assert_eq!((config.name.as_deref(), config.port), (Some("a"), 7));
    assert_eq!((config.stations.len(), config.keepalive.probes), (1, 9));
    assert_eq!(config.keepalive.idle, Keepalive::default().idle);
    assert_eq!(config.lost_link, None);
    let (config, fault) = parse_best_effort::<Config>("name = \"a\"\nport = \n[tags]", &file(), owned(&[]));
    assert!(fault.is_some());
    assert_eq!(config.name.as_deref(), Some("a"));
}

#[test]
fn files_over_the_limit_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("c.toml");
    let bytes = usize::try_from(FILE_BYTES_MAX).expect("fits") + 1;
    std::fs::write(&path, " ".repeat(bytes)).expect("writes");
    let error = read_file(&path).expect_err("too long").to_string();
    assert!(error.contains("it is longer than 1048576 bytes"), "{error}");
    let error = read_file(&dir.path().join("none"))
        .expect_err("no file")
        .to_string();
    assert!(error.contains("none: cannot be read: "), "{error}");
}
