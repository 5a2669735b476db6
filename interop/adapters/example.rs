//! The example `serve` as a program.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A copy of the program, since another build may replace it.
pub(crate) fn program(package: &str, directory: &TempDir) -> PathBuf {
    let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example-serve.lock");
    let lock = File::create(lock).unwrap();
    #[expect(clippy::incompatible_msrv, reason = "tests want a current compiler")]
    lock.lock().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["build", "--quiet", "--message-format=json"]);
    let name = match package {
        "nbd-tokio" => "tokio_serve",
        "nbd-async-std" => "async_std_serve",
        _ => "serve",
    };
    cargo.args(["--package", package, "--example", name]);
    let built = cargo.output().unwrap();
    assert!(built.status.success(), "{built:?}");
    let json = String::from_utf8(built.stdout).unwrap();
    let (_, path) = json.split_once(r#""executable":""#).unwrap();
    let (path, _) = path.split_once('"').unwrap();
    let copy = directory.path().join("serve");
    // Copied by another process: a process that this one starts meanwhile in another thread would
    // inherit the file descriptor, which is open for writing, and the copy could not be run
    // (ETXTBSY).
    let copied = Command::new("cp").arg(path).arg(&copy).status().unwrap();
    assert!(copied.success(), "{copied}");
    copy
}
