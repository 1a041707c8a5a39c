//! The programs under test are found, whatever the working directory of the test.

use std::process::Command;

#[test]
fn binaries_exist_and_run() {
    let binaries = swarm_tests::binaries();
    for binary in [&binaries.node, &binaries.station] {
        let output = Command::new(binary).arg("--help").output();
        output.unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
    }
}
