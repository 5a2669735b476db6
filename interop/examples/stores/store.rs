//! The store of a server, and the line to it.

use super::Result;
use interop::{LatencyProxy, MemoryStore, ObjectStoreServer, Traffic};
use std::{env, net::SocketAddr, time::Duration};

pub(super) enum Store {
    /// In this program.
    Memory(MemoryStore),
    /// A program of its own, behind a line that has the latency.
    Moto {
        server: ObjectStoreServer,
        line: LatencyProxy,
    },
}

impl Store {
    pub(super) fn new(latency: Duration) -> Result<Self> {
        match env::var("STORE").as_deref() {
            Err(_) | Ok("memory") => Ok(Self::Memory(MemoryStore::s3(latency))),
            Ok("moto") => {
                let server = ObjectStoreServer::s3().ok_or("moto is not installed")?;
                let line = LatencyProxy::new(server.address(), latency);
                Ok(Self::Moto { server, line })
            }
            Ok(other) => Err(format!("a store is memory or moto, not {other}").into()),
        }
    }

    /// Changes the latency, where that is possible.
    pub(super) fn set_latency(&self, latency: Duration) {
        if let Self::Memory(store) = self {
            store.set_latency(latency);
        }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        match self {
            Self::Memory(store) => store.address(),
            Self::Moto { line, .. } => line.address(),
        }
    }

    pub(super) fn uri(&self, prefix: &str) -> String {
        match self {
            Self::Memory(store) => store.uri(prefix),
            Self::Moto { server, .. } => server.uri(prefix),
        }
    }

    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Memory(store) => store.variables(),
            Self::Moto { server, line } => server.variables_by(line.address()),
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        match self {
            Self::Memory(store) => store.traffic(),
            Self::Moto { line, .. } => Traffic {
                requests: line.requests(),
                ..Traffic::default()
            },
        }
    }

    pub(super) fn reset(&self) {
        match self {
            Self::Memory(store) => store.reset(),
            Self::Moto { line, .. } => line.reset(),
        }
    }
}
