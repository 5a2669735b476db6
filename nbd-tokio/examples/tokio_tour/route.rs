//! The order of a tour, for every asynchronous runtime.

use crate::{
    common::{Arguments, Certificates, Outcome},
    host::Host,
    many::many,
    measure::measure,
    walk::walk,
};
use nbd_io::{client::ConnectOptions, runtime::Network, server::Listener};
use std::io;

/// Visits the server of the arguments, or else the tour's own, with the listener that `listen`
/// makes.
pub(crate) async fn tour<R: Network, L: Listener + Send + 'static>(
    runtime: R,
    arguments: Arguments,
    listen: fn(nbd_socket::Listener) -> io::Result<L>,
) -> Outcome<()> {
    let options = ConnectOptions::with_runtime(runtime.clone());
    if let Some(uri) = arguments.uri()? {
        let options = options.local_files(arguments.local_files);
        let client = walk(&options, &uri, arguments.write).await?;
        many(&client, arguments.write).await?;
        measure(&[("this server", &client)], arguments.write).await?;
        client.disconnect().await?;
        println!("Disconnected.");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let host = Host::start(&runtime, listen, directory.path(), None)?;
    let plain = walk(&options, host.uri(), true).await?;
    many(&plain, true).await?;

    println!("The same over TLS, with certificates made on the spot:\n");
    let certificates = Certificates::new()?;
    let secure_host = Host::start(&runtime, listen, directory.path(), Some(&certificates))?;
    let options = options.tls(certificates.client()?);
    let secure = walk(&options, secure_host.uri(), true).await?;
    many(&secure, true).await?;

    measure(&[("Unix socket", &plain), ("TLS", &secure)], true).await?;
    for (client, host) in [(plain, host), (secure, secure_host)] {
        client.disconnect().await?;
        host.stop().await?;
    }
    println!("Disconnected, and the servers have ended.");
    Ok(())
}
