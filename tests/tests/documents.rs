//! What the documents say is checked: commands, links, paths, names of tests, length and words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use swarm_tests::binaries;

/// With fewer commands than these in all documents, the search for them is at fault.
const COMMANDS_MIN: usize = 50;
/// Longest page, in lines. The protocol is a reference of one piece and may be longer.
const PAGE_LINES_MAX: usize = 300;
const README_LINES_MAX: usize = 220;
/// Pronouns without a noun: a sentence with one of them leaves its subject to the reader.
const VAGUE_WORDS: [&str; 5] = ["whoever", "whomever", "nobody", "somebody", "whom"];
/// Where a path in a document may begin.
const TOP_FOLDERS: [&str; 6] = ["shared/", "node/", "ground-station/", "tests/", "docs/", "fuzz/"];

/// One command line of ours in a document.
#[derive(Debug)]
struct ShownCommand {
    /// Document, line number and line.
    location: String,
    /// `ground-station`; else `swarm-node`.
    station: bool,
    words: Vec<String>,
}

/// Help pages, each requested once.
#[derive(Default)]
struct HelpPages(BTreeMap<Vec<String>, String>);

impl HelpPages {
    fn get(&mut self, program: &Path, verbs: &[String]) -> &str {
        let mut key = vec![program.display().to_string()];
        key.extend_from_slice(verbs);
        self.0.entry(key).or_insert_with(|| {
            let output = Command::new(program).args(verbs).arg("--help").output();
            let output = output.expect("the program starts");
            assert!(
                output.status.success(),
                "{} {verbs:?} --help fails",
                program.display()
            );
            String::from_utf8(output.stdout).expect("help is text")
        })
    }
}

/// The verbs listed below `Commands:` in a help page.
fn verbs_of(page: &str) -> Vec<&str> {
    let below = page.lines().skip_while(|line| *line != "Commands:").skip(1);
    below
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

/// Whether a help page lists exactly this option.
fn explains(page: &str, flag: &str) -> bool {
    page.match_indices(flag).any(|(at, _)| {
        let next = page[at + flag.len()..].chars().next();
        next.is_none_or(|c| !(c.is_ascii_alphanumeric() || c == '-'))
    })
}

/// Splits a line as a shell does: without comments, with `|`, `&&` and `;` as separate words.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '#') if word.is_empty() => break,
            (None, c) if c.is_whitespace() => words.extend(Some(std::mem::take(&mut word))),
            (None, '|' | ';') => {
                words.extend([std::mem::take(&mut word), c.to_string()]);
            }
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// Our commands in one line.
fn commands_in(line: &str, place: &str) -> Vec<ShownCommand> {
    let all = words(line);
    let parts = all.split(|word| matches!(word.as_str(), "|" | "&&" | ";"));
    parts
        .filter_map(|part| {
            let sudo = part.iter().take_while(|word| *word == "sudo").count();
            let (program, rest) = part[sudo..].split_first()?;
            let station = match program.rsplit('/').next()? {
                "ground-station" => true,
                "swarm-node" => false,
                _ => return None,
            };
            Some(ShownCommand {
                location: place.to_owned(),
                station,
                words: rest.to_vec(),
            })
        })
        .collect()
}

/// Our commands in a document, from code blocks and from inline code.
fn commands_of(document: &str, text: &str) -> Vec<ShownCommand> {
    let (mut found, mut in_block) = (Vec::new(), false);
    for (number, line) in (1..).zip(text.lines()) {
        let place = format!("{document}:{number}: {line}");
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.extend(commands_in(line, &place));
        } else {
            let inline = line.split('`').skip(1).step_by(2);
            // The bare name of a program is not a command.
            found.extend(
                inline
                    .flat_map(|code| commands_in(code, &place))
                    .filter(|c| !c.words.is_empty()),
            );
        }
    }
    found
}

fn check(shown: &ShownCommand, pages: &mut HelpPages) -> Result<(), String> {
    let program = if shown.station {
        &binaries().station
    } else {
        &binaries().node
    };
    let own = shown.words.iter().take_while(|word| *word != "--");
    let (flags, plain): (Vec<&String>, Vec<&String>) = own.partition(|word| word.starts_with("--"));
    let mut verbs: Vec<String> = Vec::new();
    for word in plain {
        let known = verbs_of(pages.get(program, &verbs)).contains(&word.as_str());
        if known {
            verbs.push(word.clone());
        } else if verbs_of(pages.get(program, &verbs)).is_empty() || word.chars().all(char::is_uppercase) {
            break;
        } else if !flags
            .iter()
            .any(|flag| *flag == "--state-dir" || *flag == "--config")
        {
            return Err(format!("{word:?} is no verb: {}", shown.location));
        }
    }
    for flag in flags {
        let flag = flag.split('=').next().unwrap_or(flag);
        let explained = explains(pages.get(program, &verbs), flag) || explains(pages.get(program, &[]), flag);
        if !explained {
            return Err(format!("{verbs:?} has no {flag}: {}", shown.location));
        }
    }
    Ok(())
}

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("a member of a workspace").to_owned()
}

/// All files with this extension below `dir`, without build output.
fn files_below(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                files_below(&path, extension, found);
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

/// Every document: its path below the root, and its text.
fn documents() -> Vec<(String, String)> {
    let root = root();
    let mut paths: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .map(|name| root.join(name))
        .into();
    files_below(&root.join("docs"), "md", &mut paths);
    let relative = |path: &Path| path.strip_prefix(&root).expect("below the root").to_owned();
    paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).expect("the document is readable");
            (relative(path).display().to_string(), text)
        })
        .collect()
}

/// The text outside code blocks.
fn without_blocks(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// Inline code outside code blocks.
fn inline_code(text: &str) -> Vec<String> {
    let prose = without_blocks(text);
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The anchor that a heading gets on usual hosts of Markdown.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
fn expand_braces(path: &str) -> Vec<String> {
    match path
        .split_once('{')
        .and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    {
        Some((before, (choices, after))) => choices
            .split(',')
            .map(|choice| format!("{before}{choice}{after}"))
            .collect(),
        None => vec![path.to_owned()],
    }
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn documented_commands_are_accepted() {
    let mut pages = HelpPages::default();
    let all: Vec<ShownCommand> = documents()
        .iter()
        .flat_map(|(document, text)| commands_of(document, text))
        .collect();
    assert!(
        all.len() >= COMMANDS_MIN,
        "only {} commands were found",
        all.len()
    );
    let faults: Vec<String> = all
        .iter()
        .filter_map(|shown| check(shown, &mut pages).err())
        .collect();
    assert_none(&faults);
}

#[test]
fn wrong_documented_command_is_detected() {
    let mut pages = HelpPages::default();
    for wrong in [
        "ground-station fly all",
        "ground-station ping --nosuch",
        "swarm-node run --stat",
        "cd x && sudo ground-station fleet evict drone-04 | head",
    ] {
        let found = commands_in(wrong, wrong);
        assert_eq!(found.len(), 1, "{wrong}");
        check(&found[0], &mut pages).expect_err(wrong);
    }
}

#[test]
fn links_between_documents_resolve() {
    let mut faults = Vec::new();
    for (document, text) in documents() {
        let path = root().join(&document);
        for target in without_blocks(&text)
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if target.contains("://") {
                continue;
            }
            let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                path.clone()
            } else {
                path.with_file_name(file)
            };
            let Ok(linked) = std::fs::read_to_string(&file).or_else(|error| {
                let is_folder = file.is_dir();
                is_folder.then(String::new).ok_or(error)
            }) else {
                faults.push(format!("{document} links to {target}, which does not exist"));
                continue;
            };
            let mut headings = linked.lines().filter(|line| line.starts_with('#'));
            if !fragment.is_empty() && !headings.any(|heading| anchor(heading) == fragment) {
                faults.push(format!("{document} links to {target}, which has no such heading"));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn paths_named_in_documents_exist() {
    let mut faults = Vec::new();
    for (document, text) in documents() {
        for code in inline_code(&text) {
            // Paths of the protocol crate are often long, so documents write them without `shared/src/`.
            let in_shared = ["proto/", "net/", "api/", "client/"];
            let base = if in_shared.iter().any(|folder| code.starts_with(folder)) {
                root().join("shared/src")
            } else {
                root()
            };
            let is_path = (base != root() || TOP_FOLDERS.iter().any(|folder| code.starts_with(folder)))
                && code
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "/._-{},".contains(c));
            if !is_path {
                continue;
            }
            for path in expand_braces(&code) {
                if !base.join(&path).exists() {
                    faults.push(format!("{document} names {path}, which does not exist"));
                }
            }
        }
    }
    assert_none(&faults);
}

/// Inline code with three underscores or more is the name of a function: of a test, in most cases.
#[test]
fn tests_named_in_documents_exist() {
    let mut sources = Vec::new();
    for folder in ["shared", "node", "ground-station", "tests"] {
        files_below(&root().join(folder), "rs", &mut sources);
    }
    let mut functions = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source).expect("a source file");
        for rest in text.split("fn ").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            functions.insert(name);
        }
    }
    let mut faults = Vec::new();
    for (document, text) in documents() {
        for code in inline_code(&text) {
            let name = code.rsplit("::").next().unwrap_or_default();
            let is_name = name.matches('_').count() >= 3
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_name && !functions.contains(name) {
                faults.push(format!("{document} names {name}, which is no function"));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn pages_stay_short_and_name_their_subjects() {
    let mut faults = Vec::new();
    for (document, text) in documents() {
        let lines_max = match document.as_str() {
            "docs/protocol.md" => usize::MAX,
            "README.md" => README_LINES_MAX,
            _ => PAGE_LINES_MAX,
        };
        let lines = text.lines().count();
        if lines > lines_max {
            faults.push(format!(
                "{document} has {lines} lines, at most {lines_max} are allowed"
            ));
        }
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.to_lowercase();
            let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '-'));
            if let Some(word) = words.find(|word| VAGUE_WORDS.contains(word)) {
                faults.push(format!("{document}:{number}: {word:?} names no subject"));
            }
        }
    }
    assert_none(&faults);
}
