//! The findings among a server's exports that an answer to a client is made of.

use super::authorizer::{Authorize, ClientIdentity};
use crate::{
    AnyExport, AsyncExports, Exports, Kind, Listing, MetaContext, Offer, Unavailable,
    runtime::{Runtime, unblock},
};
use nbd_proto::{
    ExportInfo, ExportName, TransmissionFlags,
    server::{Refusal, Requested, Security},
};
use std::{io, pin::Pin, sync::Arc};

/// Exports that are looked up asynchronously, by a type that is not known.
pub(crate) trait AsyncExportsHandle: Send + Sync {
    fn find<'a>(&'a self, name: &'a ExportName) -> Boxed<'a, Result<Offer, Unavailable>>;
    fn list(&self) -> Boxed<'_, Vec<Listing>>;
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl<E: AsyncExports> AsyncExportsHandle for E {
    fn find<'a>(&'a self, name: &'a ExportName) -> Boxed<'a, Result<Offer, Unavailable>> {
        Box::pin(AsyncExports::find(self, name))
    }

    fn list(&self) -> Boxed<'_, Vec<Listing>> {
        Box::pin(AsyncExports::list(self))
    }
}

/// The exports of a server, of either kind.
#[derive(Clone)]
pub(crate) enum AnyExports {
    Sync(Arc<dyn Exports>),
    Async(Arc<dyn AsyncExportsHandle>),
}

/// A way to look exports up. The futures of synchronous ones are ready.
pub(super) trait Lookup: Sync {
    fn find(&self, name: &ExportName) -> impl Future<Output = Result<Offer, Unavailable>> + Send;
    fn list(&self) -> impl Future<Output = Vec<Listing>> + Send;
}

impl Lookup for dyn Exports + '_ {
    async fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        Exports::find(self, name)
    }

    async fn list(&self) -> Vec<Listing> {
        Exports::list(self)
    }
}

impl Lookup for dyn AsyncExportsHandle + '_ {
    async fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        AsyncExportsHandle::find(self, name).await
    }

    async fn list(&self) -> Vec<Listing> {
        AsyncExportsHandle::list(self).await
    }
}

/// The exports that a client may use, as if there were no others.
pub(super) struct Authorized<'a, L: ?Sized> {
    pub(super) exports: &'a L,
    pub(super) authorize: Option<&'a Authorize>,
    pub(super) identity: ClientIdentity<'a>,
}

impl<L: Lookup + ?Sized> Authorized<'_, L> {
    fn may_use(&self, name: &ExportName) -> bool {
        self.authorize
            .is_none_or(|authorize| authorize(&self.identity, name))
    }

    fn admits(&self, offer: &Offer, name: &ExportName) -> bool {
        // A client that has to start TLS first gets that answer, and is authorized after it has.
        let later = offer.tls_only && !self.identity.encrypted;
        later || self.may_use(offer.name.as_ref().unwrap_or(name))
    }
}

impl<L: Lookup + ?Sized> Lookup for Authorized<'_, L> {
    async fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        let offer = match self.exports.find(name).await {
            Ok(offer) => offer,
            // A client that may not know of the export does not learn either why it cannot be had.
            Err(why) if why == Unavailable::unknown() || self.may_use(name) => return Err(why),
            Err(_) => return Err(Unavailable::unknown()),
        };
        self.admits(&offer, name)
            .then_some(offer)
            .ok_or_else(Unavailable::unknown)
    }

    async fn list(&self) -> Vec<Listing> {
        let mut list = self.exports.list().await;
        list.retain(|listing| self.may_use(&listing.name));
        list
    }
}

/// The part of an option that exports are looked up for.
pub(super) enum Question {
    List {
        encrypted: bool,
    },
    Export {
        name: ExportName,
        /// The export for which contexts were selected.
        selected: Option<ExportName>,
        /// Whether it is to be described, or its contexts are asked for.
        describe: bool,
        encrypted: bool,
    },
}

impl Question {
    /// Whether TLS is up.
    pub(super) const fn is_encrypted(&self) -> bool {
        match self {
            Self::List { encrypted } | Self::Export { encrypted, .. } => *encrypted,
        }
    }

    /// `None` for an option that is about no export.
    pub(super) fn of<S: Security>(requested: &Requested<S>) -> Option<Self> {
        let (name, selected, describe) = match requested {
            Requested::List(_) => {
                return Some(Self::List {
                    encrypted: S::SECURE,
                });
            }
            Requested::StartTls(_) | Requested::Abort(_) => return None,
            Requested::Info(request) => (request.name(), request.contexts_export(), true),
            Requested::Go(request) => (request.name(), request.contexts_export(), true),
            Requested::ExportName(request) => (request.name(), request.contexts_export(), true),
            Requested::ListMetaContext(request) => (request.name(), None, false),
            Requested::SetMetaContext(request) => (request.name(), None, false),
        };
        Some(Self::Export {
            name: name.clone(),
            selected: selected.cloned(),
            describe,
            encrypted: S::SECURE,
        })
    }
}

/// The findings for a [`Question`].
pub(super) enum Found {
    Nothing,
    List(Vec<Listing>),
    Export(Result<Box<FoundExport>, Unavailable>),
}

/// An export that a client asked for.
pub(super) struct FoundExport {
    pub(super) export: AnyExport,
    /// Its description, if that was asked for.
    pub(super) info: ExportInfo,
    /// Its contexts, if they were asked for.
    pub(super) contexts: Vec<MetaContext>,
    /// Whether it is the one for which contexts were selected.
    pub(super) same: bool,
    name: ExportName,
    private: bool,
    state: State,
}

/// The state of the description of an export.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Neither refreshed nor described.
    Found {
        describe: bool,
    },
    Described,
}

/// Looks up the subject of a question. An export is not described yet.
pub(super) async fn look_up(question: Question, exports: &(impl Lookup + ?Sized)) -> Found {
    let (name, selected, describe, encrypted) = match question {
        Question::List { .. } => return Found::List(exports.list().await),
        Question::Export {
            name,
            selected,
            describe,
            encrypted,
        } => (name, selected, describe, encrypted),
    };
    let offer = match exports.find(&name).await {
        Ok(offer) if offer.tls_only && !encrypted => Err(Refusal::TlsRequired.into()),
        found => found,
    };
    let offer = match offer {
        Ok(offer) => offer,
        Err(why) => return Found::Export(Err(why)),
    };
    let canonical = |offer: &Offer, name: &ExportName| {
        let canonical = offer.name.as_ref().unwrap_or(name);
        canonical.clone()
    };
    let same = match &selected {
        None => false,
        Some(selected) if *selected == name => true,
        Some(selected) => {
            let other = exports.find(selected).await;
            other.is_ok_and(|other| canonical(&other, selected) == canonical(&offer, &name))
        }
    };
    Found::Export(Ok(Box::new(FoundExport {
        name: canonical(&offer, &name),
        info: ExportInfo::new(0, TransmissionFlags::NONE),
        contexts: Vec::new(),
        same,
        private: offer.private,
        export: offer.export,
        state: State::Found { describe },
    })))
}

impl Found {
    /// The exports to be listed.
    pub(super) fn list(self) -> Vec<Listing> {
        match self {
            Self::List(list) => list,
            Self::Nothing | Self::Export(_) => Vec::new(),
        }
    }

    /// The export, or the reason for which there is none.
    pub(super) fn export(self) -> Result<Box<FoundExport>, Unavailable> {
        match self {
            Self::Export(found) => found,
            Self::Nothing | Self::List(_) => Err(Unavailable::unknown()),
        }
    }

    /// Describes a synchronous export that was found, in place.
    pub(super) fn described_in_place(mut self) -> Self {
        if let Self::Export(Ok(found)) = &mut self {
            found.describe_in_place();
        }
        self
    }

    /// Describes the export that was found, on another thread if it is synchronous and may wait.
    pub(super) async fn described(self, runtime: &impl Runtime) -> io::Result<Self> {
        let Self::Export(Ok(mut found)) = self else {
            return Ok(self);
        };
        if let Some(export) = found.export.as_sync()
            && found.state != State::Described
            && export.refresh_may_block()
            && runtime.own_thread_clock().is_none()
        {
            found = unblock(runtime, move || {
                found.describe_in_place();
                found
            })
            .await?;
        }
        found.describe_in_place();
        found.describe().await;
        Ok(Self::Export(Ok(found)))
    }

    /// Describes the export that was found, in place if it is synchronous.
    pub(super) async fn described_here(mut self) -> Self {
        if let Self::Export(Ok(found)) = &mut self {
            found.describe_in_place();
            found.describe().await;
        }
        self
    }
}

impl FoundExport {
    fn describe_in_place(&mut self) {
        let (State::Found { describe }, Kind::Sync(export)) = (self.state, &self.export.0) else {
            return;
        };
        if describe {
            export.refresh();
        }
        self.set_description(describe);
    }

    async fn describe(&mut self) {
        let (State::Found { describe }, Kind::Async(export)) = (self.state, &self.export.0) else {
            return;
        };
        if describe {
            export.refresh().await;
        }
        self.set_description(describe);
    }

    fn set_description(&mut self, describe: bool) {
        self.state = State::Described;
        if !describe {
            self.contexts = self.export.contexts();
            return;
        }
        let mut info = self.export.info();
        info.name = Some(self.name.clone());
        // The answer drops those of these flags that are impossible with the negotiated headers.
        info.flags =
            info.flags | TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        if self.private {
            info.flags = info.flags.without(TransmissionFlags::CAN_MULTI_CONN);
        }
        self.info = info;
    }
}
