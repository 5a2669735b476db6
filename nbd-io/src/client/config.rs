//! How connections are made, as plain data.

use std::time::Duration;

/// How a server is to be reached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DialOptions {
    /// How long it may take, looking up the host and trying all of its addresses included. `None`
    /// waits as long as the system does.
    pub timeout: Option<Duration>,
}

impl Default for DialOptions {
    /// 30 s.
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_secs(30)),
        }
    }
}
