//! Lists the exports of a server.
//!
//! ```console
//! $ cargo run -p nbd-blocking --example list -- nbd://localhost
//! ```

use nbd_blocking::{ConnectOptions, Uri, negotiation::Go};
use std::{
    env,
    error::Error,
    io::{self, Write},
};

fn main() -> Result<(), Box<dyn Error>> {
    let uri: Uri = env::args().nth(1).ok_or("usage: list URI")?.parse()?;
    let greeted = ConnectOptions::new().start(&uri)?;
    let mut negotiation = greeted.negotiation().ok_or("this server cannot list")?;
    for entry in negotiation.list()? {
        let name = entry.name?;
        let info = negotiation.info(Go::new(name.clone()))?;
        writeln!(io::stdout(), "\"{name}\": {} bytes", info.size)?;
    }
    negotiation.abort();
    Ok(())
}
