//! `completions`: prints completions for a shell.

use super::screen::{CliError, Screen};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ground-station completions bash > ~/.local/share/bash-completion/completions/ground-station
  ground-station completions fish > ~/.config/fish/completions/ground-station.fish")]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args, command: &mut clap::Command, screen: &mut Screen) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "ground-station", &mut script);
    screen.print_result(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
