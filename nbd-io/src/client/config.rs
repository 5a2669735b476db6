//! How connections are made, as plain data.

use std::time::Duration;

/// How a server is to be reached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DialOptions {
    /// How long it may take, looking up the host and trying all of its addresses included. `None`
    /// waits as long as the system does.
    pub timeout: Option<Duration>,
    /// For how long a TCP connection may be quiet until the system asks whether the server is still
    /// there (`SO_KEEPALIVE`). One that does not answer for three times that time is lost. `None`
    /// does not ask.
    pub tcp_keepalive: Option<Duration>,
    /// For how long the server's system may take in nothing of what was sent over TCP, or answer no
    /// question of `tcp_keepalive`, until the connection is lost (`TCP_USER_TIMEOUT`). `None` leaves
    /// that to the system, and then it may be a quarter of an hour.
    pub tcp_user_timeout: Option<Duration>,
}

impl Default for DialOptions {
    /// 30 s, a question after 30 s, and 90 s, which is more than a request may take by default.
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(30)),
            tcp_keepalive: Some(Duration::from_secs(30)),
            tcp_user_timeout: Some(Duration::from_secs(90)),
        }
    }
}
