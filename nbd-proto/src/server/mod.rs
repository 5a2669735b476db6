//! The server's side of a connection.
//!
//! ```text
//!             Handshake                          ForcedHandshake
//!                 | client's flags                    | client's flags
//!                 v                                   v
//!  +----> Options<Plain> -----------.            TlsRequired
//!  |              |                 |                 |
//!  |          Requested         StartTls          StartTls
//!  |              |                  `------. .-------'
//!  |   done/      |                          v  accept: ACK
//!  |   refuse     |                       Upgrade
//!  '--------------+                          |  upgraded: everything else is forgotten
//!                 |                          v
//!                 |    .---- Requested <-- Options<Encrypted> <--.
//!                 |    |         `------- done/refuse -----------'
//!                 v    v
//!    GoRequest::accept, ExportNameRequest::accept
//!                   |
//!                   v            Event::Request(ticket)        answered in any order,
//!              Transmission -----------------------------> on any thread, without the connection
//!                   |        <-----------------------------
//!                   v                retire(receipt)
//!       Event::Disconnect, and finished once all is retired
//! ```
//!
//! Every phase is a value that moves on: an action that is impossible in a phase has no method
//! there. The client's wishes arrive as questions ([`Requested`]), each of which is consumed by its
//! answer. A malformed, misplaced or excessive message is answered without a question.
//!
//! # Example
//!
//! A whole connection, the client's bytes being written down:
//!
//! ```
//! use bytes::{Buf, Bytes, BytesMut};
//! use nbd_proto::server::{Config, Event, Handshake, Request, Requested};
//! use nbd_proto::{ExportInfo, Phase, Step, TransmissionFlags};
//!
//! // Writes bytes to the client and reads those from it: here, neither leave the program.
//! fn drive<P: Phase>(mut phase: P, client: &mut &[u8], out: &mut BytesMut) -> P::Next {
//!     loop {
//!         let space = phase.space();
//!         let n = space.len().min(client.len());
//!         client.copy_to_slice(&mut space[..n]);
//!         match phase.filled(n, out).expect("the client obeys the protocol") {
//!             Step::More(more) => phase = more,
//!             Step::Done(next) => return next,
//!         }
//!     }
//! }
//!
//! let mut out = BytesMut::new();
//! let handshake = Handshake::new(Config::default(), &mut out);
//! assert_eq!(out.split(), &b"NBDMAGICIHAVEOPT\x00\x03"[..]);
//!
//! // The client's flags, then NBD_OPT_GO for the export "disk" with no further questions.
//! let mut client = &b"\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x0a\x00\x00\x00\x04disk\x00\x00"[..];
//! let options = drive(handshake, &mut client, &mut out);
//! let Requested::Go(go) = drive(options, &mut client, &mut out) else { panic!() };
//! assert_eq!(go.name().as_str(), "disk");
//! let export = ExportInfo::new(1 << 20, TransmissionFlags::SEND_FLUSH);
//! let mut transmission = go.accept(&export, &mut out);
//! assert_eq!(out.split().len(), (20 + 12) + 20, "NBD_INFO_EXPORT and NBD_REP_ACK");
//!
//! // NBD_CMD_READ of 4 bytes at 512 with the cookie 7.
//! let mut request = Vec::from(*b"\x25\x60\x95\x13\x00\x00\x00\x00");
//! request.extend(7u64.to_be_bytes());
//! request.extend(512u64.to_be_bytes());
//! request.extend(4u32.to_be_bytes());
//! let fed = transmission.feed(&request)?;
//! let Some(Event::Request(Request::Read { offset: 512, len: 4, ticket, .. })) = fed.event
//! else { panic!() };
//! let mut reply = ticket.data(Bytes::from_static(b"data"));
//! let mut sent = reply.frame.copy_to_bytes(reply.frame.remaining());
//! assert_eq!(sent.split_to(8), &b"\x67\x44\x66\x98\x00\x00\x00\x00"[..]);
//! assert_eq!(sent, &b"\x00\x00\x00\x00\x00\x00\x00\x07data"[..]);
//! transmission.retire(reply.receipt);
//! assert_eq!(transmission.in_flight(), 0);
//! # Ok::<(), nbd_proto::Error>(())
//! ```

mod config;
mod export;
mod handshake;
mod limits;
mod list;
mod meta;
mod options;
mod reader;
mod refusal;
mod tls;
mod transmission;

pub use config::Config;
pub use export::{ExportNameRequest, GoRequest, InfoRequest};
pub use handshake::{ForcedHandshake, Handshake, oldstyle};
pub use limits::Limits;
pub use list::ListRequest;
pub use meta::{ListMetaContextRequest, SetMetaContextRequest};
pub use options::{Aborted, Encrypted, Options, Plain, Requested, Security};
pub use refusal::Refusal;
pub use tls::{ForcedRequested, StartTls, Tls, TlsRequired, Upgrade};
pub use transmission::{
    Context, Event, Fed, Fill, Part, ReadTicket, Receipt, Reply, Request, SparseRead, StatusTicket,
    Ticket, Transmission,
};
