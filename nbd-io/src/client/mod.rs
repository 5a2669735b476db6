//! The client's side: negotiation, step by step or all at once, and the planning of requests; in
//! [`tasks`] all of a client.
//!
//! Items that are hidden from the documentation are for the drivers of this project, and may change
//! at any time.

mod common;
mod config;
mod connector;
mod driver;
#[doc(hidden)]
pub mod engine;
mod error;
mod events;
pub mod exchange;
mod launch;
mod logged;
mod membership;
#[cfg(feature = "tracing")]
mod messages;
mod negotiate;
mod negotiated;
mod negotiation;
mod options;
mod planning;
mod range_locks;
mod reconnect;
mod remote;
mod request;
pub mod tasks;
mod write_log;

#[doc(hidden)]
pub use common::Common;
#[doc(hidden)]
pub use config::Config;
pub use config::{DialOptions, NegotiationConfig, TlsPolicy};
#[doc(hidden)]
pub use connector::{Connector, Dialer};
pub use driver::Driver;
pub(crate) use error::causes;
pub use error::{Error, Lost};
#[doc(hidden)]
pub use error::{is_refusal, server_name};
pub use events::ClientEvent;
#[doc(hidden)]
pub use events::{Observer, Watched};
pub use exchange::Refused;
pub use launch::ServerProcess;
#[doc(hidden)]
pub use logged::{
    Admission, FlushStep, FlushTurn, Kept, LinkLog, Record, Room, SharedLog, Uncovered,
};
#[doc(hidden)]
pub use membership::{DialId, Join, Loss, Membership, Next};
pub use negotiate::{Connected, NegotiationError, negotiate};
pub use negotiated::Negotiated;
pub use negotiation::{
    Greeted, Negotiation, Newstyle, Oldstyle, RefusedStep, StepOutcome, TlsOutcome,
};
pub use options::ConnectOptions;
pub use planning::StatusRun;
#[doc(hidden)]
pub use planning::{ExtentStep, Part, Piece, StatusRuns, WINDOW, index, length, longest, split};
#[doc(hidden)]
pub use range_locks::{Claim, Owner, RangeLocks};
pub use reconnect::{ConnectionState, Reconnect};
pub use remote::Remote;
#[doc(hidden)]
pub use remote::{not_selected, remote_contexts, within};
#[doc(hidden)]
pub use request::Request;
#[doc(hidden)]
pub use write_log::{Coverage, Epoch, WriteLog};
