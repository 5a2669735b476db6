//! The client's side: negotiation, step by step or all at once, and the planning of requests; in
//! [`shared`] all of a client.

mod common;
mod config;
mod connector;
mod driver;
pub mod engine;
mod error;
mod events;
pub mod exchange;
mod launch;
mod logged;
mod membership;
mod negotiate;
mod negotiated;
mod negotiation;
mod options;
mod planning;
mod range_locks;
mod reconnect;
mod request;
pub mod shared;
mod write_log;

pub use common::Common;
pub use config::{Config, DialOptions, NegotiationConfig, TlsPolicy};
pub use connector::Connector;
pub use driver::{Adopt, Driver};
pub(crate) use error::causes;
pub use error::{Error, Lost, is_refusal, server_name};
pub use events::{ClientEvent, Observer, Watched};
pub use exchange::Refused;
pub use launch::ServerProcess;
pub use logged::{Admission, Kept, LinkLog, Record, Room, SharedLog};
pub use membership::{DialId, Join, Loss, Membership, Next};
pub use negotiate::{Connected, NegotiationError, negotiate};
pub use negotiated::Negotiated;
pub use negotiation::{Greeted, Negotiation, Newstyle, Oldstyle, RefusedStep, StepResult};
pub use options::ConnectOptions;
pub use planning::{
    ExtentStep, Part, Piece, Stretch, Stretches, WINDOW, index, length, longest, split,
};
pub use range_locks::{Claim, Owner, RangeLocks};
pub use reconnect::{ConnectionState, Reconnect};
pub use request::Request;
pub use write_log::{Epoch, WriteLog};
