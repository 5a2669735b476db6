//! The main job from end to end: list exports, describe one, map it, write, read back and verify,
//! write zeroes, trim, cache, flush, disconnect; and how fast it was.
//!
//! ```text
//! cargo run --release -p nbd-blocking --example tour              # with a server of its own
//! cargo run --release -p nbd-blocking --example tour -- URI       # reads only
//! cargo run --release -p nbd-blocking --example tour -- --write URI
//! ```

#![expect(clippy::print_stdout, reason = "a tour is for looking at")]

mod common;
mod host;
mod measure;
mod show;
mod walk;

use clap::Parser;
use common::{Arguments, Certificates, Outcome};
use host::Host;
use measure::measure;
use nbd_blocking::ConnectOptions;
use walk::walk;

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let options = ConnectOptions::new();
    if let Some(uri) = arguments.uri()? {
        let options = options.local_files(arguments.local_files);
        let client = walk(&options, &uri, arguments.write)?;
        measure(&[("this server", &client)], arguments.write)?;
        client.disconnect()?;
        println!("Disconnected.");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let host = Host::start(directory.path(), None)?;
    let plain = walk(&options, host.uri(), true)?;

    println!("The same over TLS, with certificates made on the spot:\n");
    let certificates = Certificates::new()?;
    let secure_host = Host::start(directory.path(), Some(&certificates))?;
    let options = options.tls(certificates.client()?);
    let secure = walk(&options, secure_host.uri(), true)?;

    measure(&[("Unix socket", &plain), ("TLS", &secure)], true)?;
    for (client, host) in [(plain, host), (secure, secure_host)] {
        client.disconnect()?;
        host.stop()?;
    }
    println!("Disconnected, and the servers have ended.");
    Ok(())
}
