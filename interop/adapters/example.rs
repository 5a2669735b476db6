//! The example `serve` as a program.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};
use tempfile::TempDir;

/// A copy of the program, since another build may replace it.
pub(crate) fn program(package: &str, directory: &TempDir) -> PathBuf {
    let name = match package {
        "nbd-tokio" => "tokio_serve",
        "nbd-async-std" => "async_std_serve",
        _ => "serve",
    };
    // The directory of this test's program is beside that of the examples.
    let tests = env::current_exe().unwrap();
    let profile = tests.ancestors().nth(2).unwrap();
    let present = profile.join("examples").join(name);
    let path = if is_up_to_date(&present).unwrap_or_default() {
        present
    } else {
        build(package, name)
    };
    let copy = directory.path().join("serve");
    // Copied by another process: a process that this one starts meanwhile in another thread would
    // inherit the file descriptor, which is open for writing, and the copy could not be run
    // (ETXTBSY).
    let copied = Command::new("cp").arg(path).arg(&copy).status().unwrap();
    assert!(copied.success(), "{copied}");
    copy
}

/// Whether the program is younger than its sources, which cargo lists in a file beside it. Cargo is only
/// asked to build it if it is not: for this package alone it shares no artefacts with a build of the
/// whole workspace.
fn is_up_to_date(program: &Path) -> Option<bool> {
    let changed = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let built = changed(program)?;
    let list = fs::read_to_string(program.with_extension("d")).ok()?;
    let (_, sources) = list.split_once(": ")?;
    let mut sources = sources.split_whitespace();
    Some(sources.all(|source| changed(Path::new(source)).is_some_and(|time| time < built)))
}

fn build(package: &str, name: &str) -> PathBuf {
    let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example-serve.lock");
    let lock = File::create(lock).unwrap();
    #[expect(clippy::incompatible_msrv, reason = "tests want a current compiler")]
    lock.lock().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["build", "--quiet", "--message-format=json"]);
    cargo.args(["--package", package, "--example", name]);
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{built:?}");
    let json = String::from_utf8(built.stdout).unwrap();
    let (_, path) = json.split_once(r#""executable":""#).unwrap();
    let (path, _) = path.split_once('"').unwrap();
    path.into()
}
