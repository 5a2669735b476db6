//! Tests with a hosts file and name servers of their own.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::process::ExitStatusExt,
    process::Command,
    thread,
};

use crate::peer::in_ci;

/// Set in a test program that was started again.
const INSIDE: &str = "NBD_TEST_NAMES";

/// Runs a test with files of its own in place of `/etc/hosts` and `/etc/resolv.conf`, and with a
/// network that has nothing but loopback.
///
/// For that the test program is started anew, in namespaces of its own, with this one test. `module`
/// is the test's `module_path!()`.
///
/// # Panics
///
/// When the test fails there; under `CI=true` also where no namespaces can be made, which root can,
/// and on most systems every user.
pub fn with_names(module: &str, test: &str, hosts: &str, resolv: &str, body: impl FnOnce()) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let dir = tempfile::tempdir().expect("there is room for a directory");
    for (name, text) in [
        ("hosts", hosts),
        ("resolv.conf", resolv),
        ("nsswitch.conf", "hosts: files dns\n"),
    ] {
        fs::write(dir.path().join(name), text).expect("there is room for a file");
    }
    let script = r#"cd "$1" && shift && ip link set lo up && for file in *; do
        test -e "/etc/$file" || touch "/etc/$file"
        mount --bind "$file" "/etc/$file" || exit 77
    done || exit 77; cd - >/dev/null; exec "$@""#;
    // The first segment is the crate.
    let name = match module.split_once("::") {
        Some((_, path)) => format!("{path}::{test}"),
        None => test.to_owned(),
    };
    let program = env::current_exe().expect("a test program knows where it is");
    let output = Command::new("unshare")
        .args([
            "--map-root-user",
            "--mount",
            "--net",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(dir.path())
        .arg(program)
        .args(["--exact", &name, "--nocapture"])
        .env(INSIDE, "1")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output();
    let problem = match output {
        Ok(output) if output.status.success() => {
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("1 passed"), "no test is named {name}: {said}");
            return;
        }
        // The exit code of a test program after a failed test, or a signal.
        Ok(output) if output.status.code() == Some(101) || output.status.signal().is_some() => {
            let said = String::from_utf8_lossy(&output.stdout);
            panic!("{said}{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    assert!(!in_ci(), "no namespaces can be made: {problem}");
    let thread = thread::current();
    // Not `eprintln!`: the test runner would swallow it, and a skip must be seen.
    drop(writeln!(
        io::stderr(),
        "SKIPPED {}: no namespaces can be made: {}",
        thread.name().unwrap_or(test),
        problem.trim_end()
    ));
}
