//! Who may use what.

use super::Peer;
use crate::{Exports, Listing, Offer};
use nbd_proto::ExportName;
use std::{fmt, sync::Arc};

/// Who wants to use an export, for a program to decide whether they may.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Applicant<'a> {
    /// The other end of the connection.
    pub peer: &'a Peer,
    /// Whether TLS is up.
    pub encrypted: bool,
    /// The certificate that the client has shown, in DER. It was verified. `None` without TLS, or
    /// where clients need not show one.
    pub certificate: Option<&'a [u8]>,
}

impl Applicant<'_> {
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

impl fmt::Debug for Applicant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applicant")
            .field("peer", self.peer)
            .field("encrypted", &self.encrypted)
            .field("certificate", &self.certificate.map(<[u8]>::len))
            .finish()
    }
}

/// Decides whether somebody may know of and use the export of this canonical name.
pub(super) type Authorize = Arc<dyn Fn(&Applicant<'_>, &ExportName) -> bool + Send + Sync>;

/// What there is to decide about one client.
pub(super) struct Admission<'a> {
    pub(super) peer: &'a Peer,
    pub(super) authorize: Option<&'a Authorize>,
}

impl<'a> Admission<'a> {
    /// The exports that the client may use, as if there were no others.
    pub(super) const fn to(
        &self,
        exports: &'a dyn Exports,
        encrypted: bool,
        certificate: Option<&'a [u8]>,
    ) -> Admitted<'a> {
        Admitted {
            exports,
            authorize: self.authorize,
            applicant: Applicant {
                peer: self.peer,
                encrypted,
                certificate,
            },
        }
    }
}

/// The exports that a client may use.
pub(super) struct Admitted<'a> {
    exports: &'a dyn Exports,
    authorize: Option<&'a Authorize>,
    applicant: Applicant<'a>,
}

impl Admitted<'_> {
    fn may_use(&self, name: &ExportName) -> bool {
        self.authorize
            .is_none_or(|authorize| authorize(&self.applicant, name))
    }
}

impl Exports for Admitted<'_> {
    fn lookup(&self, name: &ExportName) -> Option<Offer> {
        let offer = self.exports.lookup(name)?;
        // Who has to start TLS first is told so, and is looked at when they have.
        let later = offer.tls_only && !self.applicant.encrypted;
        (later || self.may_use(offer.name.as_ref().unwrap_or(name))).then_some(offer)
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
