//! qemu-nbd: one image, all its meta contexts, and extended headers.

use std::ffi::OsString;

use crate::{
    Certificates, Image, Listen, Peer, Server,
    process::Stop,
    require,
    server::{Endpoint, Ready, Recipe, joined, pid_file},
};

/// A qemu-nbd to be started, by default on a Unix socket and for any number of clients.
#[derive(Debug)]
pub struct QemuNbd {
    image: Image,
    args: Vec<OsString>,
    shared: u32,
    listen: Listen,
}

impl QemuNbd {
    /// Serves an image, which lives as long as the server.
    pub const fn new(image: Image) -> Self {
        Self {
            image,
            args: Vec::new(),
            shared: 0,
            listen: Listen::Unix,
        }
    }

    /// The address to listen on.
    #[must_use]
    pub const fn listen(mut self, listen: Listen) -> Self {
        self.listen = listen;
        self
    }

    /// Adds any other option.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The name of the export, which is empty by default.
    #[must_use]
    pub fn export_name(self, name: &str) -> Self {
        self.arg("-x").arg(name)
    }

    /// The description of the export.
    #[must_use]
    pub fn description(self, text: &str) -> Self {
        self.arg("-D").arg(text)
    }

    /// Offers the context `qemu:allocation-depth`.
    #[must_use]
    pub fn allocation_depth(self) -> Self {
        self.arg("-A")
    }

    /// Offers the context `qemu:dirty-bitmap:NAME`.
    ///
    /// A read-only export wants a bitmap that no longer records: see [`Image::stop_bitmap`].
    #[must_use]
    pub fn bitmap(self, name: &str) -> Self {
        self.arg("-B").arg(name)
    }

    /// Exports for reading only.
    #[must_use]
    pub fn read_only(self) -> Self {
        self.arg("--read-only")
    }

    /// Passes TRIM on to the image, instead of ignoring it.
    #[must_use]
    pub fn discard(self) -> Self {
        self.arg("--discard=unmap")
    }

    /// Serves at most this many clients at once; more than one lets it advertise
    /// `NBD_FLAG_CAN_MULTI_CONN`.
    #[must_use]
    pub const fn shared(mut self, clients: u32) -> Self {
        self.shared = clients;
        self
    }

    /// Insists on TLS.
    #[must_use]
    pub fn tls_required(self, certificates: &Certificates) -> Self {
        self.tls(certificates, "off")
    }

    /// Insists on TLS of version 1.2.
    #[must_use]
    pub fn tls_1_2_required(self, certificates: &Certificates) -> Self {
        self.tls(certificates, "off,priority=NORMAL:-VERS-TLS1.3")
    }

    /// Insists on TLS and wants a certificate from the client.
    #[must_use]
    pub fn tls_verified(self, certificates: &Certificates) -> Self {
        self.tls(certificates, "on")
    }

    fn tls(self, certificates: &Certificates, verify: &str) -> Self {
        // Its own check of the files would refuse the flawed ones, which a test may want to serve.
        let object = format!(
            "tls-creds-x509,id=tls,endpoint=server,verify-peer={verify},sanity-check=off,dir="
        );
        self.arg("--object")
            .arg(joined(&object, certificates.dir()))
            .arg("--tls-creds=tls")
    }

    /// Starts it, if it is installed; see [`require`].
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(self) -> Option<Server> {
        let program = require(Peer::QemuNbd)?;
        let Self {
            image,
            args,
            shared,
            listen,
        } = self;
        let recipe = Recipe {
            program,
            command: Box::new(move |program, dir, endpoint| {
                let mut command = program.command();
                // Without `--persistent` it would end with its first client.
                command
                    .arg("--persistent")
                    .arg(format!("--shared={shared}"));
                command.arg(joined("--pid-file=", &pid_file(dir)));
                match endpoint {
                    Endpoint::Unix(path) => command.arg("-k").arg(path),
                    other => {
                        let address = other.address();
                        let (ip, port) = (address.ip().to_string(), address.port().to_string());
                        command.args(["-b", &ip, "-p", &port])
                    }
                };
                command
                    .args(&args)
                    .args(["-f", image.format().name()])
                    .arg(image.path());
                command
            }),
            ready: Ready::PidFile,
            stop: Stop::Kill,
        };
        Some(recipe.start(listen))
    }
}
