//! `man`: prints the manual pages.

use std::path::PathBuf;

use super::screen::{CliError, Screen};

/// Print the manual page, or write a page for each verb
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ground-station man | man -l -
  ground-station man --dir ~/.local/share/man/man1")]
pub(super) struct Args {
    /// Write all pages into this directory, which is made if it is absent
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, command: clap::Command, screen: &mut Screen) -> Result<u8, CliError> {
    if let Some(dir) = &args.dir {
        std::fs::create_dir_all(dir)
            .and_then(|()| clap_mangen::generate_to(command, dir))
            .map_err(|error| CliError::failed(format!("cannot write manual pages into {dir:?}: {error}")))?;
        return Ok(0);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(|error| CliError::failed(format!("cannot make the manual page: {error}")))?;
    screen.print_result(&String::from_utf8_lossy(&page))?;
    Ok(0)
}
