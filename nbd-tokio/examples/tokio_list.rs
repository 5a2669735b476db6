//! Lists the exports of a server.
//!
//! ```console
//! $ cargo run -p nbd-tokio --example tokio_list -- nbd://localhost
//! ```

use nbd_tokio::{ConnectOptions, Uri, negotiation::Go};
use std::{
    env,
    error::Error,
    io::{self, Write},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let uri: Uri = env::args().nth(1).ok_or("usage: tokio_list URI")?.parse()?;
    let greeted = ConnectOptions::new().start(&uri).await?;
    let mut negotiation = greeted.negotiation().ok_or("this server cannot list")?;
    for entry in negotiation.list().await? {
        let name = entry.name?;
        let info = negotiation.info(Go::new(name.clone())).await?;
        writeln!(io::stdout(), "\"{name}\": {} bytes", info.size)?;
    }
    negotiation.abort().await;
    Ok(())
}
