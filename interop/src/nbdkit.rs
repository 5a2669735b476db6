//! nbdkit: a plugin, filters, and switches that make it an odd server.

use std::{ffi::OsString, path::PathBuf};

use crate::{
    Certificates, Image, Listen, Peer, Server,
    process::Stop,
    require,
    server::{Endpoint, Ready, Recipe, joined, pid_file},
};

/// An nbdkit to be started, by default on a Unix socket.
#[derive(Clone, Debug)]
pub struct Nbdkit {
    plugin: OsString,
    params: Vec<OsString>,
    args: Vec<OsString>,
    listen: Listen,
    /// Kept as long as the server.
    image: Option<Image>,
}

impl Nbdkit {
    /// Serves the disk of a plugin, such as `memory`, `pattern`, `sparse-random`, `eval` or `file`.
    pub fn new(plugin: impl Into<OsString>) -> Self {
        let (params, args) = (Vec::new(), Vec::new());
        Self {
            plugin: plugin.into(),
            params,
            args,
            listen: Listen::default(),
            image: None,
        }
    }

    /// Serves an image with the plugin `file`.
    pub fn file(image: Image) -> Self {
        let mut server = Self::new("file").param(image.path());
        server.image = Some(image);
        server
    }

    /// Adds a `key=value` for the plugin or a filter.
    #[must_use]
    pub fn param(mut self, param: impl Into<OsString>) -> Self {
        self.params.push(param.into());
        self
    }

    /// Puts a filter before those added so far: the first one added is the client's neighbour.
    #[must_use]
    pub fn filter(self, name: &str) -> Self {
        self.arg(format!("--filter={name}"))
    }

    /// Adds an option of nbdkit itself.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The address to listen on.
    #[must_use]
    pub const fn listen(mut self, listen: Listen) -> Self {
        self.listen = listen;
        self
    }

    /// Speaks the oldstyle protocol.
    #[must_use]
    pub fn oldstyle(self) -> Self {
        self.arg("--oldstyle")
    }

    /// Offers only those of the handshake flags that are set here: 0 is newstyle, not fixed.
    #[must_use]
    pub fn mask_handshake(self, flags: u16) -> Self {
        self.arg(format!("--mask-handshake={flags}"))
    }

    /// Refuses structured replies.
    #[must_use]
    pub fn no_structured_replies(self) -> Self {
        self.arg("--no-sr")
    }

    /// Exports for reading only.
    #[must_use]
    pub fn read_only(self) -> Self {
        self.arg("--read-only")
    }

    /// Insists on TLS.
    #[must_use]
    pub fn tls_required(self, certificates: &Certificates) -> Self {
        self.arg("--tls=require")
            .arg(joined("--tls-certificates=", certificates.dir()))
    }

    /// Offers TLS and serves clients without TLS as well.
    #[must_use]
    pub fn tls_offered(self, certificates: &Certificates) -> Self {
        self.arg("--tls=on")
            .arg(joined("--tls-certificates=", certificates.dir()))
    }

    /// Insists on TLS with a pre-shared key from a file of `user:hex` lines.
    #[must_use]
    pub fn tls_psk(self, keys: impl Into<PathBuf>) -> Self {
        self.arg("--tls=require")
            .arg(joined("--tls-psk=", &keys.into()))
    }

    /// Wants a certificate from the client.
    #[must_use]
    pub fn verify_peer(self) -> Self {
        self.arg("--tls-verify-peer")
    }

    /// Starts it, if it is installed; see [`require`].
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(self) -> Option<Server> {
        let program = require(Peer::Nbdkit)?;
        let Self {
            plugin,
            params,
            args,
            listen,
            image,
        } = self;
        let recipe = Recipe {
            program,
            command: Box::new(move |program, dir, endpoint| {
                let _kept = &image;
                let mut command = program.command();
                command
                    .arg("--foreground")
                    .arg("--pidfile")
                    .arg(pid_file(dir));
                match endpoint {
                    Endpoint::Unix(path) => command.arg("--unix").arg(path),
                    Endpoint::Tcp(address) => command
                        .arg(format!("--ipaddr={}", address.ip()))
                        .arg(format!("--port={}", address.port())),
                    Endpoint::Vsock(port) => command.arg("--vsock").arg(format!("--port={port}")),
                };
                command.args(&args).arg(&plugin).args(&params);
                command
            }),
            ready: Ready::PidFile,
            stop: Stop::Kill,
        };
        Some(recipe.start(listen))
    }
}
