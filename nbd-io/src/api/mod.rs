//! The types by which users of a driver use it, written once.
//!
//! A driver's users see pages of its own: `ConnectOptions`, `Client`, `Server` and the types of a
//! negotiation are real types of each driver. Each wraps its generic counterpart in this crate, and
//! differs only in its runtime and in how a call waits: `async fn` and `.await`, or in place. These
//! macros write them, with their documentation and with an example of the driver at each method.
//!
//! An example begins with `$begin`, which is hidden and has the variables that it may use, such as
//! `options`, `disk` and `server`; a call that waits in it is followed by `$dot_await`.

mod accessors;
mod client;
mod connect_options;
mod negotiation;
mod root;
mod server;
mod streams;
