//! The client's side: negotiation, step by step or all at once, and the planning of requests; in
//! [`shared`] all of a client.

mod changes;
mod connect;
pub mod engine;
mod error;
mod facts;
mod membership;
mod negotiation;
mod planning;
mod reconnect;
mod request;
pub mod shared;

pub use changes::{Changes, is_refusal};
pub use connect::{Connected, NegotiationError, Target, TlsPolicy, negotiate};
pub use error::{Error, Lost};
pub use facts::Facts;
pub use membership::{DialId, Join, Loss, Membership, Next};
pub use negotiation::{Greeted, Haggling, Refused, TlsOnly, enter_by_name, greet, greet_secure};
pub use planning::{
    ExtentStep, Part, Piece, Stretch, Stretches, WINDOW, index, length, longest, split,
};
pub use reconnect::{ConnectionState, Reconnect};
pub use request::Request;
