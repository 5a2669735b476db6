//! The server's side: negotiation, and carrying out requests.
//!
//! ```text
//!   a client connects
//!         |
//!         v       questions are answered from `Exports`
//!     negotiate ----------------------------------------> Ended
//!         |
//!         v  Entered: the transport, a Transmission and an Export
//!   +---------------------------------------------------------------------+
//!   | read  --> Transmission::feed, fill/filled --> Event::Request        |
//!   |                                                   |                 |
//!   |                                                   v                 |
//!   | write <-- Replies::slices, advance <-- Replies <-- execute          |
//!   |              `-- all written: Replies::retire                       |
//!   +---------------------------------------------------------------------+
//! ```
//!
//! [`negotiate`] runs over any [`Transport`](crate::transport::Transport). What follows is a loop
//! of the runtime's: it reads, has each request carried out by [`execute`], which waits for
//! nothing but the storage, and writes what that leaves in [`Replies`].

mod answer;
mod execute;
mod negotiation;
mod replies;
#[cfg(test)]
mod tests;

pub use execute::execute;
pub use negotiation::{Ended, Entered, NegotiationError, ServerOptions, TlsMode, negotiate};
pub use replies::Replies;
