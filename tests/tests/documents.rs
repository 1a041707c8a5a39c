//! Every command line that the documents for users show is one that the programs understand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use swarm_tests::binaries;

const DOCUMENTS: [&str; 5] = [
    "README.md",
    "docs/gateways.md",
    "docs/operations.md",
    "docs/plugins.md",
    "docs/security.md",
];
/// Fewer than these in all, and what finds them is at fault.
const COMMANDS_MIN: usize = 50;

/// One command line of ours in a document.
#[derive(Debug)]
struct ShownCommand {
    /// Where: document and line.
    location: String,
    station: bool,
    words: Vec<String>,
}

/// Help pages, each asked for once.
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

/// What stands below `Commands:` in a help page.
fn verbs_of(page: &str) -> Vec<&str> {
    let below = page.lines().skip_while(|line| *line != "Commands:").skip(1);
    below
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

/// Whether a help page explains this very option.
fn explains(page: &str, flag: &str) -> bool {
    page.match_indices(flag).any(|(at, _)| {
        let next = page[at + flag.len()..].chars().next();
        next.is_none_or(|c| !(c.is_ascii_alphanumeric() || c == '-'))
    })
}

/// A line as a shell cuts it: words, without comment, and `|`, `&&`, `;` as words of their own.
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

/// The commands of ours in one line.
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

/// The commands of ours in a document: in its code blocks, and in the code within its text.
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
            // A program's bare name is no command.
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

#[test]
fn documented_commands_are_accepted() {
    let mut pages = HelpPages::default();
    let mut all = Vec::new();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(root().join(document)).expect("the document is there");
        all.extend(commands_of(document, &text));
    }
    assert!(
        all.len() >= COMMANDS_MIN,
        "only {} commands were found",
        all.len()
    );
    let faults: Vec<String> = all
        .iter()
        .filter_map(|shown| check(shown, &mut pages).err())
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
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
    let documents = DOCUMENTS
        .iter()
        .chain(&["ARCHITECTURE.md", "CHANGELOG.md", "docs/protocol.md"]);
    for document in documents {
        let path = root().join(document);
        let text = std::fs::read_to_string(&path).expect("the document is there");
        // Between fences is code, which has brackets of its own.
        let text: String = text.split("```").step_by(2).collect();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || target.contains("://") {
                continue;
            }
            let there = path.with_file_name(file).exists();
            assert!(there, "{document} links to {target}, which is not there");
        }
    }
}
