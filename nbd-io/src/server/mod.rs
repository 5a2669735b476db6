//! The server's side: from a listening socket to the last reply.
//!
//! ```text
//!   Listener --> Server::serve, a task for each connection
//!                   |
//!                   v       questions are answered from `Exports`
//!               negotiate ----------------------------------------> Ended
//!                   |
//!                   v  Entered: the transport, a Transmission and an Export
//!   +----------------------------------------------------------------------+
//!   | transport --> Intake --> Request --> execute, in place or as a job   |
//!   |                                         |                            |
//!   | transport <------------- Replies <------+                            |
//!   +----------------------------------------------------------------------+
//!                   |
//!                   v
//!                CloseReason
//! ```
//!
//! A runtime brings its [`Listener`], its [`Transport`](crate::transport::Transport) and the
//! methods of [`Tasks`](crate::runtime::Tasks); [`Server`] is the rest.
//!
//! A program with an event loop of its own can take it apart: [`negotiate`] runs over any
//! transport, each request is carried out by [`execute`], which waits for nothing but the storage,
//! or [`execute_async`], and the reply to be written is in [`Replies`].

mod accept;
mod accept_error;
mod answer;
mod authorizer;
mod budget;
mod buffers;
mod clocks;
mod connection;
mod event;
mod execute;
mod execute_async;
mod future_set;
mod in_flight;
mod intake;
mod jobs;
mod listener;
mod lookup;
mod negotiation;
mod rate;
mod registry;
mod replies;
mod report;
mod serving;
mod session;
mod stopper;
#[cfg(test)]
mod tests;
mod work;

pub use authorizer::ClientIdentity;
pub use event::{CloseReason, Event, Peer};
pub(crate) use execute::Pieces;
pub use execute::execute;
pub use execute_async::execute_async;
pub(crate) use execute_async::{Answer, answer};
pub(crate) use in_flight::{InFlight, in_flight};
pub use listener::Listener;
pub use negotiation::{Ended, Entered, NegotiationError, ServerOptions, TlsMode, negotiate};
pub use rate::Rate;
pub use replies::Replies;
pub use report::Outcome;
pub(crate) use report::Report;
pub use serving::Server;
use serving::Settings;
pub use stopper::Stopper;
