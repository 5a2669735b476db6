//! The server's side, from the outside: transcripts of a client's bytes and a server's answers.
//!
//! Every script runs with its bytes arriving all at once, one by one and in between, and an
//! independent decoder (`val`) checks all bytes of the server.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on fails"
)]

mod export;
mod flow;
mod greeting;
mod meta;
mod negotiation;
mod replies;
mod requests;
mod splits;
mod status;
mod support;
mod tls;
mod val;
