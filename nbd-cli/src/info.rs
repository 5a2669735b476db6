//! `nbd info`: everything that is known of an export.

use crate::{
    connect::{Connect, Opened},
    content,
    outcome::{Answer, Error, Result},
    output, report, runtime,
    session::Session,
    target::Target,
};
use clap::Args;
use nbd_tokio::{Client, TlsSession};

/// Show everything that is known of an export.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nbd info                              a disk in this process, to try it
  nbd info nbd://localhost/disk
  nbd info --json nbd+unix:///?socket=/tmp/nbd.sock
  nbd info --can multi-conn URI && echo 'several connections'")]
pub(crate) struct Info {
    /// A URI, a file or a block device.
    target: Option<Target>,
    /// Print a JSON document, with the keys that nbdinfo has for the same.
    #[arg(long, group = "what")]
    json: bool,
    /// Print the size in bytes and nothing else.
    #[arg(long, group = "what")]
    size: bool,
    /// Say by the exit code whether the export can do this: 0 for yes, 1 for no.
    #[arg(long, group = "what", value_name = "FEATURE", value_parser = names(report::ABILITIES))]
    can: Option<String>,
    /// Say by the exit code whether the export is this.
    #[arg(long, group = "what", value_name = "FEATURE", value_parser = names(report::QUALITIES))]
    is: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

fn names(features: &'static [report::Feature]) -> clap::builder::PossibleValuesParser {
    features
        .iter()
        .map(|feature| feature.name)
        .collect::<Vec<_>>()
        .into()
}

impl Info {
    pub(crate) fn run(self) -> Result {
        let opened = Connect::open(self.target.as_ref())?;
        let server = runtime::block_on(look(&self.connect, &opened, self.needs_content()))?;
        let export = server.exports.first();
        let export = export.ok_or_else(|| Error::new("the server described no export"))?;
        for (asked, features) in [
            (&self.can, report::ABILITIES),
            (&self.is, report::QUALITIES),
        ] {
            if let Some(name) = asked {
                let feature = features.iter().find(|feature| feature.name == name);
                return Ok(feature.is_some_and(|feature| feature.holds(export)).into());
            }
        }
        if self.size {
            output::print(&format!("{}\n", export.size))?;
        } else if self.json {
            output::json(&server)?;
        } else {
            output::print(&server.text())?;
        }
        Ok(Answer::Yes)
    }

    /// Whether the disk is read for a guess.
    fn needs_content(&self) -> bool {
        !self.size && self.can.is_none() && self.is.is_none()
    }
}

/// Learns everything of the export of a URI.
async fn look(
    connect: &Connect,
    Opened { uri, .. }: &Opened,
    content: bool,
) -> Result<report::Server> {
    let options = connect.options()?;
    let mut session = Session::agreed(&options, connect.policy(), uri).await?;
    let mut server = report::Server::new(
        session.protocol(),
        session.is_encrypted(),
        session.header_style(),
    );
    let contexts = session.contexts(uri.export()).await?;
    let client = session.enter(uri.export()).await?;
    server.tls_session = tls(&client);
    let mut export = report::Export::new(uri, client.export(), &contexts);
    if content {
        match guess(&client).await {
            Ok(content) => export.content = Some(content),
            // Everything else is known nevertheless.
            Err(error) if error.errno().is_some() => export.content_error = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    server.exports.push(export);
    client.disconnect().await?;
    Ok(server)
}

/// The likely content of the disk.
async fn guess(client: &Client) -> Result<&'static str, nbd_tokio::Error> {
    let len = content::NEEDED.min(usize::try_from(client.size()).unwrap_or(usize::MAX));
    let beginning = client.read(0, len).await?;
    Ok(content::guess(&beginning).unwrap_or("data"))
}

fn tls(client: &Client) -> Option<report::Tls> {
    let session = client.tls_session()?;
    Some(report::Tls {
        version: session.version.to_owned(),
        cipher_suite: session.cipher_suite.to_owned(),
        certificate: certificate(session),
    })
}

#[cfg(feature = "tls-base")]
fn certificate(session: &TlsSession) -> Option<report::Certificate> {
    let names = session.peer_names().ok().flatten()?;
    let addresses = names.ip.iter().map(ToString::to_string);
    Some(report::Certificate {
        names: names.dns.into_iter().chain(addresses).collect(),
        subject: names.subject,
    })
}

/// There is no session.
#[cfg(not(feature = "tls-base"))]
const fn certificate(_: &TlsSession) -> Option<report::Certificate> {
    None
}
