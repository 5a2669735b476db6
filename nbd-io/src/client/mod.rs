//! The client's side: negotiation, step by step or all at once, and the planning of requests; in
//! [`shared`] all of a client.

mod config;
mod connect;
pub mod engine;
mod error;
mod facts;
mod logged;
mod membership;
mod negotiation;
mod planning;
mod range_locks;
mod reconnect;
mod request;
pub mod shared;
mod write_log;

pub use config::DialOptions;
pub use connect::{Connected, NegotiationError, Target, TlsPolicy, negotiate};
pub use error::{Error, Lost, is_refusal, server_name};
pub use facts::Facts;
pub use logged::{Admission, Kept, LinkLog, Record, Room, SharedLog};
pub use membership::{DialId, Join, Loss, Membership, Next};
pub use negotiation::{Greeted, Haggling, Refused, TlsOnly, enter_by_name, greet, greet_secure};
pub use planning::{
    ExtentStep, Part, Piece, Stretch, Stretches, WINDOW, index, length, longest, split,
};
pub use range_locks::{Claim, Owner, RangeLocks};
pub use reconnect::{ConnectionState, Reconnect};
pub use request::Request;
pub use write_log::{Epoch, WriteLog};
