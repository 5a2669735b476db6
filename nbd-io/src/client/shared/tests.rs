mod api;
mod cursor;
mod dropping;
mod early;
mod ending;
mod engine;
mod late;
mod order;
mod pipe;
mod policy;
mod recovery;
mod relapse;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
mod secure;
mod server;
mod sim;
mod splitting;
mod sweep;
