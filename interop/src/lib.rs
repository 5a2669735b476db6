//! Other people's NBD programs as peers for this workspace's tests.
//!
//! Everything here panics on failure, since its only callers are tests.

mod certificates;

pub use certificates::{Certificates, Flaw};
