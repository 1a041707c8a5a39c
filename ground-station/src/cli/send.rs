//! `send`: sends files to nodes.

use std::path::{Path, PathBuf};

use swarm_shared::proto::selector::Selector;

use super::screen::{CliError, Screen};
use super::{CommonOptions, request};
use crate::duration::to_ms;
use crate::engine::files::names;
use swarm_shared::api::{ActRequest, FileToSend, FilesToSend};

/// Send files to nodes: the same to all, or to each its own
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "ground-station send [OPTIONS] <FILE>... <SELECTOR:DEST>\n       \
                      ground-station send [OPTIONS] --per-node <DIR> <SELECTOR:DEST>",
    after_help = "\
DEST is ROOT/PATH: one of the roots that nodes configure, and a path below it. It is a
directory if it ends in /, is a root alone, or takes several files; otherwise it is the file's
name there. A file appears under its name only when it is whole and its hash is right.

Examples:
  ground-station send take1.csv 'drone-*:shows/take1.csv'
  ground-station send *.csv all:shows/
  ground-station send --per-node takes/ 'drone-*:shows/take1.csv'
                                           takes/drone-07.csv goes to drone-07, and so on"
)]
pub(super) struct Args {
    /// Files, then the nodes and the place on them
    #[arg(required = true, value_name = "FILE… SELECTOR:DEST")]
    arguments: Vec<String>,
    /// Send each node the file of this directory that has the node's name
    #[arg(long, value_name = "DIR")]
    per_node: Option<PathBuf>,
}

pub(super) async fn run(args: Args, common: &CommonOptions, screen: &mut Screen) -> Result<u8, CliError> {
    let (selector, files) = plan_transfer(args)?;
    let request = ActRequest::SendFiles {
        selector,
        files,
        ttl_ms: to_ms(common.ttl),
        timeout_ms: to_ms(common.timeout),
    };
    request::run_request("send", request, common, screen).await
}

fn plan_transfer(args: Args) -> Result<(Selector, FilesToSend), CliError> {
    let Some((target, sources)) = args.arguments.split_last() else {
        return Err(CliError::usage("name files, and then SELECTOR:DEST"));
    };
    let (selector, dest) = Selector::split_path(target)?;
    names::check_path(dest)?;
    if let Some(dir) = args.per_node {
        if let Some(extra) = sources.first() {
            return Err(CliError::usage(format!(
                "with --per-node, name SELECTOR:DEST and no files; {extra:?} is one"
            )));
        }
        if !dir.is_dir() {
            return Err(CliError::usage(format!(
                "{dir:?} is not a directory; --per-node needs one"
            )));
        }
        return Ok((
            selector,
            FilesToSend::PerNode {
                dir: absolute(&dir)?,
                dest: dest.to_owned(),
            },
        ));
    }
    if sources.is_empty() {
        return Err(CliError::usage(
            "name at least one file before SELECTOR:DEST, or use --per-node DIR",
        ));
    }
    let mut planned: Vec<FileToSend> = Vec::new();
    for source in sources {
        let source = Path::new(source);
        let metadata = std::fs::metadata(source)
            .map_err(|error| CliError::usage(format!("cannot read {source:?}: {error}")))?;
        if !metadata.is_file() {
            return Err(CliError::usage(format!(
                "{source:?} is not a file; whole directories are not sent yet"
            )));
        }
        let dest = names::destination(dest, source, sources.len() > 1)?;
        if let Some(same) = planned.iter().find(|file| file.dest == dest) {
            let text = format!(
                "{source:?} and {:?} would both become {dest}; rename one",
                same.source
            );
            return Err(CliError::usage(text));
        }
        planned.push(FileToSend {
            source: absolute(source)?,
            dest,
        });
    }
    Ok((selector, FilesToSend::Same { files: planned }))
}

/// The absolute path: a running `serve` has another working directory.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|error| CliError::usage(format!("{path:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(arguments: &[&str], per_node: Option<&Path>) -> Result<(Selector, FilesToSend), CliError> {
        let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
        plan_transfer(Args {
            arguments,
            per_node: per_node.map(Path::to_owned),
        })
    }

    #[test]
    fn send_plan_validates_sources_and_destinations() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
        std::fs::create_dir(path("sub")).expect("a directory");
        for name in ["a", "b", "sub/a"] {
            std::fs::write(path(name), "x").expect("a file");
        }
        let (selector, files) =
            planned(&[&path("a"), &path("b"), "tag:row=3:shows/x"], None).expect("a plan");
        assert_eq!(selector.as_str(), "tag:row=3");
        let FilesToSend::Same { files } = files else {
            panic!("the same to all")
        };
        let dests: Vec<&str> = files.iter().map(|file| file.dest.as_str()).collect();
        assert_eq!(dests, ["shows/x/a", "shows/x/b"]);

        planned(&["all:shows/x"], Some(dir.path())).expect("a plan");
        for (arguments, per_node) in [
            (&["all:shows/x"][..], None),
            (&[&path("a"), "all"], None),
            (&[&path("a"), "all:/etc/x"], None),
            (&[&path("a"), "all:shows/../x"], None),
            (&[&path("c"), "all:shows/x"], None),
            (&[&path("sub"), "all:shows/x"], None),
            (&[&path("a"), &path("sub/a"), "all:shows/"], None),
            (&[&path("a"), "all:shows/"], Some(dir.path())),
            (&["all:shows/"], Some(Path::new("/nonexistent"))),
        ] {
            assert!(planned(arguments, per_node).is_err(), "{arguments:?}");
        }
    }
}
