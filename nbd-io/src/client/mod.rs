//! The client's side: negotiation, step by step or all at once, and the planning of requests; in
//! [`shared`] all of a client.

mod changes;
mod connect;
pub mod engine;
mod error;
mod extents;
mod facts;
mod membership;
mod negotiation;
mod reconnect;
mod request;
pub mod shared;
mod split;

pub use changes::{Changes, is_refusal};
pub use connect::{Connected, NegotiationError, Target, TlsPolicy, negotiate};
pub use error::{Error, Lost};
pub use extents::{ExtentWalk, Stretch, Stretches};
pub use facts::Facts;
pub use membership::{DialId, Join, Loss, Membership, Next};
pub use negotiation::{Greeted, Haggling, Refused, TlsOnly, enter_by_name, greet, greet_secure};
pub use reconnect::{ConnectionState, Reconnect};
pub use request::Request;
pub use split::{Piece, blocks_of, check_range, longest, split};
