//! The client's side: from the first byte of a server to replies in any order.
//!
//! ```text
//!  Handshake ──┬─ Oldstyle ──────────────── accept ──────────────────────────────┐
//!              ├─ Newstyle ──────────────── export_name ── PendingExportName ────┤
//!              └─ Options<Plain> ─┬─ list info structured_reply … ── Pending ─┐  │
//!                     ▲           ├─ abort                                   │  │
//!                     │           ├─ export_name ── PendingExportName ───────│──┤
//!                     │           ├─ go ─────────── Pending ── Accepted ─────│──┼── Transmission
//!                     └───────────│────────────────── Refused ───────────────┘  │
//!                                 └─ start_tls ──── Pending ── Upgrade          │
//!  SecureHandshake ── TlsRequired ── start_tls ──── Pending ── Upgrade          │
//!                                                                 │ upgraded    │
//!                                                     Options<Encrypted> ───────┘
//! ```
//!
//! A phase is a value. The call that ends it consumes it, so a handle that exists can be used, and
//! a step that the protocol forbids does not compile. A client that starts with a
//! [`SecureHandshake`] has no way to a [`Transmission`] that is not encrypted.
//!
//! ```
//! use bytes::BytesMut;
//! use nbd_proto::{ExportName, Phase, Step, client::{Go, GoOutcome, Greeted, Handshake, InfoSet}};
//!
//! let mut out = BytesMut::new();
//! // A server that speaks fixed newstyle greets.
//! let greeting = b"NBDMAGICIHAVEOPT\0\x03";
//! let (_, step) = Handshake::new(Default::default()).feed(greeting, &mut out)?;
//! let Step::Done(Greeted::FixedNewstyle(options)) = step else { panic!("{step:?}") };
//!
//! let pending = options.go(Go::new(ExportName::new("disk")?), &mut out);
//! // … the driver writes `out`, and the server answers: 1 MiB, and nothing special …
//! let answer = [
//!     0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 12,
//!     0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1,
//!     0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0,
//! ];
//! let (_, step) = pending.feed(&answer, &mut out)?;
//! let Step::Done(GoOutcome::Accepted(mut transmission)) = step else { panic!("{step:?}") };
//! assert_eq!(transmission.export().size, 1 << 20);
//!
//! let (cookie, frame) = transmission.read(0, 512, Default::default())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Steps that must not happen do not compile. An option after the export was entered:
//!
//! ```compile_fail,E0382
//! # use nbd_proto::{ExportName, client::{Go, Options, Plain}};
//! # fn f(options: Options<Plain>, out: &mut bytes::BytesMut) {
//! let pending = options.go(Go::new(ExportName::default()), out);
//! options.list(out); // `options` was given away
//! # }
//! ```
//!
//! A second option before the first was answered:
//!
//! ```compile_fail,E0382
//! # // C-022
//! # use nbd_proto::client::{Options, Plain};
//! # fn f(options: Options<Plain>, out: &mut bytes::BytesMut) {
//! let pending = options.list(out);
//! options.list(out);
//! # }
//! ```
//!
//! A command before the export was entered:
//!
//! ```compile_fail,E0599
//! # use nbd_proto::client::{Options, Plain};
//! # fn f(mut options: Options<Plain>) {
//! options.read(0, 512, Default::default());
//! # }
//! ```
//!
//! TLS inside TLS:
//!
//! ```compile_fail,E0599
//! # // C-049
//! # use nbd_proto::client::{Options, Encrypted};
//! # fn f(options: Options<Encrypted>, out: &mut bytes::BytesMut) {
//! options.start_tls(out);
//! # }
//! ```
//!
//! Anything but TLS where TLS is required, so that no transmission in the clear can come of it:
//!
//! ```compile_fail,E0599
//! # use nbd_proto::{ExportName, client::{Go, TlsRequired}};
//! # fn f(options: TlsRequired, out: &mut bytes::BytesMut) {
//! options.go(Go::new(ExportName::default()), out);
//! # }
//! ```
//!
//! A phase after the server broke the protocol:
//!
//! ```compile_fail,E0382
//! # use nbd_proto::{Phase, client::Handshake};
//! # fn f(handshake: Handshake, out: &mut bytes::BytesMut) {
//! let error = handshake.filled(8, out).unwrap_err();
//! handshake.filled(8, out);
//! # }
//! ```

mod handshake;
mod limits;
mod options;
mod pending;
mod tolerance;
mod transmission;

pub use handshake::{Greeted, Handshake, Newstyle, Oldstyle, SecureHandshake};
pub use limits::Limits;
pub use options::{
    Context, Encrypted, Go, InfoSet, Options, Plain, Rejected, TlsRequired, Upgrade,
};
pub use pending::{
    GoOutcome, ListEntry, MetaContextEntry, Outstanding, Pending, PendingExportName, Settled,
    TlsOutcome, outstanding,
};
pub use tolerance::Tolerance;
pub use transmission::{
    ContextExtents, Cookie, Event, Fed, Fill, Outcome, Payload, Transmission, WholeReply,
};

/// The limits and tolerances of a client towards a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Limits of the server's messages.
    pub limits: Limits,
    /// Deviations from the specification that are overlooked.
    pub tolerance: Tolerance,
}
