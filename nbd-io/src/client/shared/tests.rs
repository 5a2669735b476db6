mod api;
mod dropping;
mod ending;
mod cursor;
mod engine;
mod pipe;
mod policy;
mod recovery;
mod relapse;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
mod secure;
mod server;
mod sim;
mod sweep;
