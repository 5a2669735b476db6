//! Permissions of clients for exports.

use super::{
    Peer, Settings,
    answer::{Answer, answer},
};
use crate::{
    Exports, Listing, Offer, Unavailable,
    runtime::{Runtime, unblock},
};
use bytes::BytesMut;
use nbd_proto::{
    Error, ExportName,
    server::{Requested, Security},
};
use std::{
    fmt, io, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

/// A client that wants to use an export, for a program to decide whether it may.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct ClientIdentity<'a> {
    /// The other end of the connection.
    pub peer: &'a Peer,
    /// Whether TLS is up.
    pub encrypted: bool,
    /// The certificate that the client has shown, in DER. It was verified. `None` without TLS, or
    /// where clients need not show one.
    pub certificate: Option<&'a [u8]>,
}

impl ClientIdentity<'_> {
    /// The names in the client's certificate.
    ///
    /// # Errors
    ///
    /// When they cannot be understood. A client without a certificate has no names.
    #[cfg(feature = "tls")]
    pub fn names(&self) -> Result<crate::tls::PeerNames, crate::tls::TlsError> {
        self.certificate
            .map_or_else(|| Ok(Default::default()), crate::tls::PeerNames::of)
    }
}

impl fmt::Debug for ClientIdentity<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity")
            .field("peer", self.peer)
            .field("encrypted", &self.encrypted)
            .field("certificate", &self.certificate.map(<[u8]>::len))
            .finish()
    }
}

/// Decides whether a client may know of and use the export of this canonical name.
pub(super) type Authorize = Arc<dyn Fn(&ClientIdentity<'_>, &ExportName) -> bool + Send + Sync>;

/// Answers the questions of one client.
pub(super) trait Answers {
    /// Answers an option; the reply is appended to `out`. The certificate is the one that the
    /// client has shown.
    ///
    /// # Errors
    ///
    /// The outer one is of the program that should have been asked.
    fn answer<S: Security>(
        &self,
        requested: Requested<S>,
        certificate: Option<&Arc<[u8]>>,
        out: &mut BytesMut,
    ) -> impl Future<Output = io::Result<Result<Answer<S>, Error>>>;
}

/// Exports for every client, which are looked up in place.
impl Answers for dyn Exports + '_ {
    async fn answer<S: Security>(
        &self,
        requested: Requested<S>,
        _: Option<&Arc<[u8]>>,
        out: &mut BytesMut,
    ) -> io::Result<Result<Answer<S>, Error>> {
        Ok(answer(requested, self, out))
    }
}

/// A server's answers to one client: from the exports that it may use, as if there were no others.
pub(super) struct Authorizer<'a, R> {
    settings: &'a Settings,
    runtime: &'a R,
    peer: Peer,
    /// Number of options answered.
    answered: AtomicU32,
    asking: AtomicBool,
}

impl<'a, R: Runtime> Authorizer<'a, R> {
    pub(super) const fn new(settings: &'a Settings, runtime: &'a R, peer: Peer) -> Self {
        Self {
            settings,
            runtime,
            peer,
            answered: AtomicU32::new(0),
            asking: AtomicBool::new(false),
        }
    }

    /// Number of options answered.
    pub(super) fn answered(&self) -> u32 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether the program is being asked.
    pub(super) fn is_asking(&self) -> bool {
        self.asking.load(Ordering::Relaxed)
    }
}

impl<R: Runtime> Answers for Authorizer<'_, R> {
    async fn answer<S: Security>(
        &self,
        requested: Requested<S>,
        certificate: Option<&Arc<[u8]>>,
        out: &mut BytesMut,
    ) -> io::Result<Result<Answer<S>, Error>> {
        let asks = !matches!(requested, Requested::StartTls(_) | Requested::Abort(_));
        let (exports, authorize) = (
            Arc::clone(&self.settings.exports),
            self.settings.authorize.clone(),
        );
        let (peer, certificate) = (self.peer, certificate.cloned());
        let waits = asks && exports.may_block() && self.runtime.own_thread_clock().is_none();
        let ask = move |out: &mut BytesMut| {
            let authorized = Authorized {
                exports: &*exports,
                authorize: authorize.as_ref(),
                identity: ClientIdentity {
                    peer: &peer,
                    encrypted: S::SECURE,
                    certificate: certificate.as_deref(),
                },
            };
            answer(requested, &authorized, out)
        };
        let answered = if waits {
            // Others are served by the thread that this task has only borrowed.
            self.asking.store(true, Ordering::Relaxed);
            let mut said = mem::take(out);
            let asked = unblock(self.runtime, move || (ask(&mut said), said)).await;
            self.asking.store(false, Ordering::Relaxed);
            let (answered, said) = asked?;
            *out = said;
            answered
        } else {
            ask(out)
        };
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(answered)
    }
}

/// The exports that a client may use.
pub(super) struct Authorized<'a> {
    exports: &'a dyn Exports,
    authorize: Option<&'a Authorize>,
    identity: ClientIdentity<'a>,
}

impl Authorized<'_> {
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

impl Exports for Authorized<'_> {
    fn lookup(&self, name: &ExportName) -> Option<Offer> {
        let offer = self.exports.lookup(name)?;
        self.admits(&offer, name).then_some(offer)
    }

    fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        let offer = match self.exports.find(name) {
            Ok(offer) => offer,
            // A client that may not know of the export does not learn either why it cannot be had.
            Err(why) if why == Unavailable::unknown() || self.may_use(name) => return Err(why),
            Err(_) => return Err(Unavailable::unknown()),
        };
        self.admits(&offer, name)
            .then_some(offer)
            .ok_or_else(Unavailable::unknown)
    }

    fn list(&self) -> Vec<Listing> {
        let mut list = self.exports.list();
        list.retain(|listing| self.may_use(&listing.name));
        list
    }

    fn may_block(&self) -> bool {
        self.exports.may_block()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use nbd_proto::server::Refusal;

    /// Has `open` and cannot open `locked`.
    struct Files;

    impl Exports for Files {
        fn lookup(&self, name: &ExportName) -> Option<Offer> {
            self.find(name).ok()
        }

        fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
            match name.as_str() {
                "open" => Ok(Offer::new(Arc::new(Memory::new(512)))),
                "locked" => Err(Unavailable::new(Refusal::Policy, "it is locked")),
                _ => Err(Unavailable::unknown()),
            }
        }
    }

    #[test]
    fn a_client_that_may_not_use_an_export_learns_nothing_of_it() {
        let asked = |may: bool, name: &str| {
            let authorize: Authorize = Arc::new(move |_, _| may);
            let authorized = Authorized {
                exports: &Files,
                authorize: Some(&authorize),
                identity: ClientIdentity {
                    peer: &Peer::Unix,
                    encrypted: false,
                    certificate: None,
                },
            };
            let found = authorized.find(&ExportName::new(name).unwrap());
            found.map(drop).map_err(|why| why.refusal)
        };
        assert_eq!(asked(true, "open"), Ok(()));
        assert_eq!(asked(true, "locked"), Err(Refusal::Policy));
        assert_eq!(asked(true, "other"), Err(Refusal::Unknown));
        for name in ["open", "locked", "other"] {
            assert_eq!(asked(false, name), Err(Refusal::Unknown), "{name}");
        }
    }
}
