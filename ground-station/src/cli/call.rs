//! `call`: runs an action by its name.

use std::io::Read;
use std::path::Path;

use serde_json::Value;
use swarm_shared::proto::message::Arguments;
use swarm_shared::proto::selector::Selector;

use super::rolling::{self, RollingOptions};
use super::screen::{CliError, Screen};
use super::{CommonOptions, request};

/// Largest file that becomes an argument, in bytes, so that a command has room for its other arguments.
const ARGUMENT_FILE_BYTES_MAX: usize = 512 * 1024;

/// Run an action of nodes: a built-in one, or one that is configured on them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
VALUE is read as JSON if it is a number, true, false, null, a quoted text, a list or an
object; anything else is text. KEY=@FILE takes the text of a file.

Examples:
  ground-station call all selfcheck
  ground-station call 'drone-*' led color=#ff0000 seconds=5
  ground-station call drone-07 id new_id=drone-08
  ground-station call 'drone-*' led 'pattern=[1,0,1]'")]
pub(super) struct Args {
    #[command(flatten)]
    rolling: RollingOptions,
    /// The nodes: a selector
    selector: Selector,
    /// The action's name
    action: String,
    /// Its arguments
    #[arg(value_name = "KEY=VALUE")]
    arguments: Vec<String>,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let request = request::command_request(
        args.selector,
        &args.action,
        parse_arguments(&args.arguments)?,
        common,
    );
    rolling::run_command("call", request, args.rolling, common, screen).await
}

fn parse_arguments(pairs: &[String]) -> Result<Arguments, CliError> {
    let mut arguments = Arguments::default();
    for pair in pairs {
        let (key, text) = pair
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| CliError::usage(format!("{pair:?} is not KEY=VALUE, such as color=#ff0000")))?;
        let value = match text.strip_prefix('@') {
            Some(file) => Value::String(read_argument_file(Path::new(file))?),
            None => parse_value(text),
        };
        if arguments.kwargs.insert(key.to_owned(), value).is_some() {
            return Err(CliError::usage(format!("{key:?} is given twice; give it once")));
        }
    }
    Ok(arguments)
}

/// Reads JSON where the text is JSON. A whole number that does not fit 64 bits stays text.
fn parse_value(text: &str) -> Value {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Number(number)) if whole && number.is_f64() => Value::String(text.to_owned()),
        Ok(value) => value,
        Err(_not_json) => Value::String(text.to_owned()),
    }
}

fn read_argument_file(file: &Path) -> Result<String, CliError> {
    let fault = |error: std::io::Error| CliError::usage(format!("cannot read {file:?}: {error}"));
    let most = u64::try_from(ARGUMENT_FILE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut text = String::new();
    let file = std::fs::File::open(file).map_err(fault)?;
    file.take(most.saturating_add(1))
        .read_to_string(&mut text)
        .map_err(fault)?;
    if text.len() > ARGUMENT_FILE_BYTES_MAX {
        let rule = format!("longer than the {ARGUMENT_FILE_BYTES_MAX} bytes of an argument; use `send`");
        return Err(fault(std::io::Error::other(rule)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn argument_values_parse_as_json_or_text() {
        for (text, wanted) in [
            ("5", json!(5)),
            ("-0.5", json!(-0.5)),
            ("true", json!(true)),
            ("null", json!(null)),
            ("\"5\"", json!("5")),
            ("[1,\"a\"]", json!([1, "a"])),
            ("{\"a\":1}", json!({"a": 1})),
            ("", json!("")),
            ("007", json!("007")),
            ("#ff0000", json!("#ff0000")),
            ("True", json!("True")),
            ("[1", json!("[1")),
            ("NaN", json!("NaN")),
            (
                "123456789012345678901234567890",
                json!("123456789012345678901234567890"),
            ),
        ] {
            assert_eq!(parse_value(text), wanted, "{text}");
        }
    }

    #[test]
    fn malformed_argument_pairs_are_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "{1").expect("writes");
        let pairs = [
            "a=1".to_owned(),
            "b=x=y".to_owned(),
            format!("c=@{}", file.path().display()),
        ];
        let read = parse_arguments(&pairs).expect("arguments");
        assert_eq!(Value::Object(read.kwargs), json!({"a": 1, "b": "x=y", "c": "{1"}));
        for bad in [&["a"][..], &["=1"], &["a=1", "a=2"], &["a=@/nonexistent"]] {
            let pairs: Vec<String> = bad.iter().map(|pair| (*pair).to_owned()).collect();
            assert!(parse_arguments(&pairs).is_err(), "{bad:?}");
        }
    }
}
