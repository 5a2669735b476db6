//! The emulated machine, for tests that need more than this machine need have.

use std::{
    env,
    io::{self, Write},
};

use crate::{Peer, peer::in_ci, require};

/// Runs the ignored tests of the test program that calls it in the emulated machine, one after the
/// other, and with these variables.
///
/// They find the files and programs of this machine there. Their writes are gone with them.
///
/// # Panics
///
/// When one of them fails, and when there is none.
pub fn ignored_tests_in_linux(variables: &[(&str, &str)]) {
    let Some(linux) = require(Peer::Linux) else {
        return;
    };
    let tests = env::current_exe().expect("a test program knows where it is");
    // The kernel takes the double quotes away, and the shell that starts the program the others.
    let run = format!(
        "nbd_run=\"'{}' --ignored --test-threads=1 --color=never\"",
        tests.display()
    );
    let ci = in_ci().then_some(("CI", "true"));
    let variables = variables.iter().copied().chain(ci);
    let variables = variables.map(|(name, value)| format!("{name}=\"{value}\""));
    let finished = linux.run(variables.chain([run]));

    let said = &finished.stdout;
    for line in said.lines().filter(|line| line.contains("SKIPPED")) {
        // Not `eprintln!`: the test runner would swallow it, and a skip must be seen.
        drop(writeln!(io::stderr(), "{}", line.trim_end()));
    }
    // The console may print something before a line.
    assert!(
        said.contains("DONE 0") && said.contains("test result: ok.") && !said.contains(" 0 passed"),
        "{said}{}was the machine made by interop/linux/prepare.sh as it is now?",
        finished.stderr
    );
}
