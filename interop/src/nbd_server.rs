//! nbd-server, the reference implementation.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Certificates, Image, Listen, Peer, Server,
    process::Stop,
    require,
    server::{Endpoint, Ready, Recipe, pid_file},
};

/// Becomes a daemon in a session of its own, which is killed as a whole when our input ends.
///
/// `nbd-server -d` would stay in the foreground, but serves one connection and ends.
const GUARD: &str = r#"
"$1" -C "$2" -p "$3" </dev/null || exit
read -r _
kill -KILL "-$(cat "$3")"
"#;

/// An nbd-server to be started, by default on a Unix socket.
#[derive(Debug)]
pub struct NbdServer {
    generic: String,
    exports: Vec<Export>,
    listen: Listen,
}

#[derive(Debug)]
struct Export {
    name: String,
    image: Image,
    options: String,
}

impl NbdServer {
    /// Serves one raw image under a name, which it does not allow to be empty.
    pub fn new(name: &str, image: Image) -> Self {
        let server = Self {
            generic: String::new(),
            exports: Vec::new(),
            listen: Listen::Unix,
        };
        server.export(name, image)
    }

    /// Serves another raw image as well.
    #[must_use]
    pub fn export(mut self, name: &str, image: Image) -> Self {
        let (name, options) = (name.to_owned(), String::new());
        self.exports.push(Export {
            name,
            image,
            options,
        });
        self
    }

    /// Adds a line about the export added last, such as `flush = true`; see nbd-server(5).
    ///
    /// # Panics
    ///
    /// Never: there is always an export.
    #[must_use]
    pub fn option(mut self, line: &str) -> Self {
        let export = self
            .exports
            .last_mut()
            .expect("`new` adds the first export");
        export.options = format!("{}{line}\n", export.options);
        self
    }

    /// Adds a line to the section `generic`.
    #[must_use]
    pub fn generic(mut self, line: &str) -> Self {
        self.generic = format!("{}{line}\n", self.generic);
        self
    }

    /// The address to listen on.
    #[must_use]
    pub const fn listen(mut self, listen: Listen) -> Self {
        self.listen = listen;
        self
    }

    /// Answers `NBD_OPT_LIST`.
    #[must_use]
    pub fn list(self) -> Self {
        self.generic("allowlist = true")
    }

    /// Insists on TLS, the specification's FORCEDTLS, and on a certificate from the client.
    #[must_use]
    pub fn tls_forced(self, certificates: &Certificates) -> Self {
        self.tls(certificates).generic("force_tls = true")
    }

    /// Insists on TLS for the export added last, the specification's SELECTIVETLS, and then on a
    /// certificate from the client.
    #[must_use]
    pub fn tls_selective(self, certificates: &Certificates) -> Self {
        self.tls(certificates).option("force_tls = true")
    }

    /// Offers TLS to clients with a certificate.
    #[must_use]
    pub fn tls_offered(self, certificates: &Certificates) -> Self {
        self.tls(certificates)
    }

    fn tls(self, certificates: &Certificates) -> Self {
        // The manual calls the authority optional, but without one version 3.24 hangs up instead
        // of shaking hands.
        self.generic(&format!(
            "cacertfile = {}",
            certificates.ca_certificate().display()
        ))
        .generic(&format!(
            "certfile = {}",
            certificates.server_certificate().display()
        ))
        .generic(&format!(
            "keyfile = {}",
            certificates.server_key().display()
        ))
    }

    /// Starts it, if it is installed; see [`require`].
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(self) -> Option<Server> {
        let program = require(Peer::NbdServer)?;
        let listen = self.listen;
        let recipe = Recipe {
            program,
            command: Box::new(move |program, dir, endpoint| {
                let config = self.write_config(dir, endpoint);
                let mut command = Command::new("sh");
                command
                    .args(["-c", GUARD, "sh"])
                    .arg(program.command().get_program());
                command.arg(config).arg(pid_file(dir));
                command
            }),
            // Its process id is written before it listens.
            ready: Ready::Connects,
            stop: Stop::EndOfInput,
        };
        Some(recipe.start(listen))
    }

    fn write_config(&self, dir: &Path, endpoint: &Endpoint) -> PathBuf {
        let mut config = format!("[generic]\n{}", self.generic);
        match endpoint {
            Endpoint::Unix(path) => writeln!(config, "unixsock = {}", path.display()),
            other => {
                let address = other.address();
                writeln!(
                    config,
                    "listenaddr = {}\nport = {}",
                    address.ip(),
                    address.port()
                )
            }
        }
        .expect("a string can always be written to");
        for Export {
            name,
            image,
            options,
        } in &self.exports
        {
            let path = image.path();
            writeln!(
                config,
                "[{name}]\nexportname = {}\n{options}",
                path.display()
            )
            .expect("a string can always be written to");
        }
        let path = dir.join("config");
        fs::write(&path, config).expect("a file in our own directory can be written");
        path
    }
}
