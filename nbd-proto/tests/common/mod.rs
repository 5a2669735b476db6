//! Code that tests of both roles share.

pub(crate) mod bytes;
pub(crate) mod reply;
pub(crate) mod session;
pub(crate) mod wire;
