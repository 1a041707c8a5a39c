//! The program `swarm-node`; see `swarm_node::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    swarm_node::cli::main()
}
