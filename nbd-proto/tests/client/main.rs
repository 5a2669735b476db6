//! The client's role, proven rule by rule against the project's conformance table. The numbers in
//! comments (`C-053`, `H-013`, `B-009`) are rules of that table.

#[path = "../common/mod.rs"]
mod common;

mod ahead;
mod commands;
mod errors;
mod gates;
mod greeting;
mod hostile;
mod info;
mod list;
mod meta;
mod options;
mod random;
mod read;
mod regressions;
mod replies;
mod status;
mod tls;
mod truncated;
