//! A negotiation with a server of any age, to get its information before an export is entered.

use crate::outcome::{Error, Result};
use nbd_tokio::{
    Client, ConnectOptions, ContextName, ExportInfo, ExportName, HeaderStyle, TlsPolicy, Uri,
    negotiation::{
        Encrypted, Go, Greeted, InfoSet, ListEntry, Negotiation, Newstyle, Oldstyle, Plain,
        StepOutcome,
    },
};

/// A connection on which no export was entered.
pub(crate) enum Session {
    /// Fixed newstyle in the clear.
    Plain(Negotiation<Plain>),
    /// Fixed newstyle inside TLS.
    Encrypted(Negotiation<Encrypted>),
    /// Newstyle that is not fixed.
    Newstyle(Newstyle),
    /// Oldstyle.
    Oldstyle(Oldstyle),
}

/// Does the same with either kind of fixed newstyle, and `$other` with the rest.
macro_rules! fixed {
    ($session:expr, $negotiation:ident => $step:expr, $other:pat => $instead:expr) => {
        match $session {
            Session::Plain($negotiation) => $step,
            Session::Encrypted($negotiation) => $step,
            $other => $instead,
        }
    };
}

impl Session {
    /// Connects, and starts TLS as the URI and the policy say.
    pub(crate) async fn begin(
        options: &ConnectOptions,
        policy: TlsPolicy,
        uri: &Uri,
    ) -> Result<Self> {
        if uri.tls().is_some() || policy == TlsPolicy::Always {
            return Ok(Self::Encrypted(options.start_secure(uri).await?));
        }
        Ok(match options.start(uri).await? {
            Greeted::FixedNewstyle(plain) if policy == TlsPolicy::IfOffered => {
                match plain.start_tls().await? {
                    StepOutcome::Done(encrypted) => Self::Encrypted(encrypted),
                    StepOutcome::Refused(refused) => Self::Plain(refused.handle),
                }
            }
            Greeted::FixedNewstyle(plain) => Self::Plain(plain),
            Greeted::Newstyle(newstyle) => Self::Newstyle(newstyle),
            Greeted::Oldstyle(oldstyle) => Self::Oldstyle(oldstyle),
        })
    }

    /// Begins, and agrees on the best header style that the server has.
    pub(crate) async fn agreed(
        options: &ConnectOptions,
        policy: TlsPolicy,
        uri: &Uri,
    ) -> Result<Self> {
        let mut session = Self::begin(options, policy, uri).await?;
        session.agree().await?;
        Ok(session)
    }

    /// Agrees on the best header style that the server has.
    pub(crate) async fn agree(&mut self) -> Result<()> {
        fixed!(self, negotiation => {
            if !granted(negotiation.extended_headers().await)? {
                granted(negotiation.structured_reply().await)?;
            }
        }, _ => {});
        Ok(())
    }

    /// The handshake's name in nbdinfo.
    pub(crate) fn protocol(&self) -> &'static str {
        match self {
            Self::Plain(_) | Self::Encrypted(_) => "newstyle-fixed",
            Self::Newstyle(_) => "newstyle",
            Self::Oldstyle(_) => "oldstyle",
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Encrypted(_))
    }

    pub(crate) fn header_style(&self) -> HeaderStyle {
        fixed!(self, negotiation => negotiation.mode(), _ => HeaderStyle::Simple)
    }

    /// Lists the exports; `None` if such a server cannot be asked.
    pub(crate) async fn list(&mut self) -> Result<Option<Vec<ListEntry>>> {
        Ok(fixed!(self, negotiation => Some(negotiation.list().await?), _ => None))
    }

    /// Asks about an export, which only fixed newstyle can.
    pub(crate) async fn info(&mut self, export: &ExportName) -> Result<ExportInfo> {
        let mut question = Go::new(export.clone());
        question.infos = InfoSet::ALL;
        Ok(
            fixed!(self, negotiation => negotiation.info(question).await?, _ => {
                return Err(Error::new("exports of this server can only be entered"));
            }),
        )
    }

    /// Lists the meta contexts of an export; none where they cannot be had.
    pub(crate) async fn contexts(&mut self, export: &ExportName) -> Result<Vec<ContextName>> {
        if self.header_style() == HeaderStyle::Simple {
            return Ok(Vec::new());
        }
        let listed = fixed!(self, negotiation => {
            negotiation.list_meta_context(export, &[]).await
        }, _ => return Ok(Vec::new()));
        match listed {
            Ok(listed) => Ok(listed
                .into_iter()
                .filter_map(|entry| entry.name.ok())
                .collect()),
            Err(error) if error.refusal().is_some() => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Selects meta contexts, of those that block status is to report.
    pub(crate) async fn select(
        &mut self,
        export: &ExportName,
        names: &[ContextName],
    ) -> Result<()> {
        if self.header_style() != HeaderStyle::Simple && !names.is_empty() {
            fixed!(self, negotiation => {
                negotiation.set_meta_context(export, names).await?;
            }, _ => {});
        }
        Ok(())
    }

    /// Enters an export, or the only one that an oldstyle server has.
    pub(crate) async fn enter(self, export: &ExportName) -> Result<Client> {
        Ok(match self {
            Self::Plain(negotiation) => enter(negotiation, export).await?,
            Self::Encrypted(negotiation) => enter(negotiation, export).await?,
            Self::Newstyle(newstyle) => newstyle.export_name(export).await?,
            Self::Oldstyle(oldstyle) => oldstyle.accept().await?,
        })
    }

    /// Ends it.
    pub(crate) async fn abort(self) {
        fixed!(self, negotiation => negotiation.abort().await, _ => {});
    }
}

/// Whether the server grants a request, unless it failed.
fn granted(answer: Result<(), nbd_tokio::Error>) -> Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if error.refusal().is_some() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn enter<S: Send + 'static>(
    negotiation: Negotiation<S>,
    export: &ExportName,
) -> Result<Client> {
    let mut question = Go::new(export.clone());
    question.infos = InfoSet::ALL;
    match negotiation.go(question).await? {
        StepOutcome::Done(client) => Ok(client),
        // Servers before that option know this one.
        StepOutcome::Refused(refused) if refused.error.is_unsupported() => {
            Ok(refused.handle.export_name(export).await?)
        }
        StepOutcome::Refused(refused) => Err(Error::new(format!(
            "cannot enter the export \"{export}\": {}",
            refused.error
        ))),
    }
}
