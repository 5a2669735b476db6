//! Permissions of clients for exports.

use super::{
    Peer, Settings,
    lookup::{AnyExports, Authorized, Found, Question, look_up},
};
use crate::{
    Exports,
    runtime::{Runtime, unblock},
    transport::block_on_ready,
};
use nbd_proto::ExportName;
use std::{
    fmt, io,
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

/// Finds the exports that answers to one client are made of.
pub(super) trait Finder {
    /// Looks up the export of an option, and describes it. The certificate is the one that the client
    /// has shown.
    ///
    /// # Errors
    ///
    /// Of the program that should have been asked.
    fn find(
        &self,
        question: Question,
        certificate: Option<&Arc<[u8]>>,
    ) -> impl Future<Output = io::Result<Found>>;

    /// One more option was answered.
    fn note_answer(&self) {}
}

/// Exports for every client, which are looked up in place.
impl Finder for dyn Exports + '_ {
    async fn find(&self, question: Question, _: Option<&Arc<[u8]>>) -> io::Result<Found> {
        Ok(look_up(question, self).await.described_here().await)
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

impl<R: Runtime> Authorizer<'_, R> {
    async fn look_up(
        &self,
        question: Question,
        certificate: Option<&Arc<[u8]>>,
    ) -> io::Result<Found> {
        let (peer, encrypted) = (self.peer, question.is_encrypted());
        let authorize = self.settings.authorize.clone();
        let certificate = certificate.cloned();
        match self.settings.exports.clone() {
            AnyExports::Sync(exports) => {
                let waits = exports.may_block() && self.runtime.own_thread_clock().is_none();
                let look_up = move || {
                    let authorized = Authorized {
                        exports: &*exports,
                        authorize: authorize.as_ref(),
                        identity: ClientIdentity {
                            peer: &peer,
                            encrypted,
                            certificate: certificate.as_deref(),
                        },
                    };
                    block_on_ready(look_up(question, &authorized)).described_in_place()
                };
                if waits {
                    // Others are served by the thread that this task has only borrowed.
                    unblock(self.runtime, look_up).await
                } else {
                    Ok(look_up())
                }
            }
            AnyExports::Async(exports) => {
                let authorized = Authorized {
                    exports: &*exports,
                    authorize: authorize.as_ref(),
                    identity: ClientIdentity {
                        peer: &peer,
                        encrypted,
                        certificate: certificate.as_deref(),
                    },
                };
                Ok(look_up(question, &authorized).await)
            }
        }
    }
}

impl<R: Runtime> Finder for Authorizer<'_, R> {
    async fn find(&self, question: Question, certificate: Option<&Arc<[u8]>>) -> io::Result<Found> {
        self.asking.store(true, Ordering::Relaxed);
        let found = self.look_up(question, certificate).await;
        let found = match found {
            Ok(found) => found.described(self.runtime).await,
            Err(error) => Err(error),
        };
        self.asking.store(false, Ordering::Relaxed);
        found
    }

    fn note_answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::lookup::Lookup, *};
    use crate::{Memory, Offer, Unavailable};
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
                exports: &Files as &dyn Exports,
                authorize: Some(&authorize),
                identity: ClientIdentity {
                    peer: &Peer::Unix,
                    encrypted: false,
                    certificate: None,
                },
            };
            let name = ExportName::new(name).unwrap();
            let found = block_on_ready(authorized.find(&name));
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
