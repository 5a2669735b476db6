//! A server that is checked: its address and its features.

use crate::{
    check::{
        replies::Entered,
        rule::{Checked, Fault, Outcome, must, not},
        server::{Rule, process::Process},
        talk::{OptionReply, Record, Talk},
        wire::{self, Fields, Style, kind, option, rep},
    },
    connect::Connect,
    outcome::{Error, Result},
};
#[cfg(feature = "tls-base")]
use nbd_tokio::ClientTls;
use nbd_tokio::{TlsPolicy, Uri, nbd_proto::uri::Address};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    cell::Cell,
    ffi::{OsStr, OsString},
    io,
    net::ToSocketAddrs,
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

/// The first bytes of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::check) enum Greeting {
    #[default]
    FixedNewstyle,
    /// No option but NBD_OPT_EXPORT_NAME.
    Newstyle,
    /// No options.
    Oldstyle,
}

/// The abilities of a server, as found at the first connection.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::check) struct Profile {
    pub(in crate::check) greeting: Greeting,
    /// Handshake flags.
    pub(in crate::check) handshake: u16,
    /// Whether options are refused before TLS.
    pub(in crate::check) forces_tls: bool,
    pub(in crate::check) has_structured: bool,
    pub(in crate::check) has_extended: bool,
    pub(in crate::check) size: u64,
    /// Transmission flags with the best headers there are.
    pub(in crate::check) flags: u16,
    /// The minimum block size, the preferred one and the maximum payload.
    pub(in crate::check) sizes: Option<[u32; 3]>,
}

#[derive(Debug)]
pub(in crate::check) struct Server {
    pub(super) uri: Uri,
    #[cfg(feature = "tls-base")]
    tls: Option<ClientTls>,
    pub(super) time: Duration,
    /// If the check has started the server.
    pub(super) process: Option<Process>,
    pub(in crate::check) record: Record,
    pub(in crate::check) profile: Profile,
    /// Whether it may be written to.
    pub(in crate::check) writes: bool,
    /// Whether it takes no connections any more.
    is_gone: Cell<bool>,
}

impl Server {
    /// Connects for the first time, after starting the server by a command if there is one.
    pub(in crate::check) fn open(
        connect: &Connect,
        uri: &Uri,
        time: Duration,
        writes: bool,
        command: &[OsString],
    ) -> Result<Self> {
        let is_secure = uri.tls().is_some() || connect.policy() == TlsPolicy::Always;
        let mut server = Self {
            uri: uri.clone(),
            #[cfg(feature = "tls-base")]
            tls: if is_secure {
                Some(trust(connect, uri)?)
            } else {
                None
            },
            time,
            process: (!command.is_empty()).then(|| Process::new(command)),
            record: Record::default(),
            profile: Profile::default(),
            writes,
            is_gone: Cell::new(false),
        };
        #[cfg(not(feature = "tls-base"))]
        if is_secure {
            return Err(Error::new("this build of nbd has no TLS"));
        }
        server.start()?;
        server.profile = server.look().map_err(|fault| {
            let (Fault::Must(text)
            | Fault::Should(text)
            | Fault::Gone(text)
            | Fault::Not(text)
            | Fault::Impossible(text)) = fault;
            Error::new(format!("cannot check {}: {text}", uri.redacted()))
        })?;
        server.record.take();
        Ok(server)
    }

    /// Checks a rule. A server that is gone afterwards has failed, by any rule.
    pub(in crate::check) fn check(&self, rule: &Rule) -> Outcome {
        let begin = Instant::now();
        let mut checked = if self.is_gone.get() {
            Err(Fault::Impossible("the server is gone".into()))
        } else {
            (rule.check)(self)
        };
        let transcript = self.record.take();
        if let Err(Fault::Must(text) | Fault::Should(text) | Fault::Gone(text)) = &checked
            && self.begin().is_err()
        {
            // One that can be started again is there for the next rule.
            self.is_gone.set(self.restart().is_err());
            checked = must(format!("{text}; and now the server takes no connections"));
        }
        self.record.take();
        Outcome::new(
            rule.about,
            checked,
            transcript,
            begin.elapsed().as_secs_f64(),
        )
    }

    pub(in crate::check) fn is_secure(&self) -> bool {
        #[cfg(feature = "tls-base")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls-base"))]
        false
    }

    pub(in crate::check) fn export(&self) -> &[u8] {
        self.uri.export().as_str().as_bytes()
    }

    /// Finds out the features of the server.
    fn look(&self) -> Checked<Profile> {
        let (mut talk, greeting, handshake) = self.begin()?;
        let mut profile = Profile {
            greeting,
            handshake,
            ..Profile::default()
        };
        if greeting != Greeting::FixedNewstyle {
            if self.is_secure() {
                return not("it has no options, so no TLS");
            }
            let mut entered = self.without_options(talk, greeting, handshake)?;
            (profile.size, profile.flags) = (entered.size, entered.flags);
            entered.disconnect()?;
            return Ok(profile);
        }
        talk.send(&u32::from(handshake & 3).to_be_bytes(), "client flags")?;
        self.secure(&mut talk)?;
        if !self.is_secure() {
            let answer = talk.ask(option::LIST, &[])?;
            profile.forces_tls = answer.last.kind == rep::ERR_TLS_REQD;
            if profile.forces_tls {
                return Ok(profile);
            }
        }
        profile.has_extended = talk.ask(option::EXTENDED_HEADERS, &[])?.is_ack();
        profile.has_structured =
            profile.has_extended || talk.ask(option::STRUCTURED_REPLY, &[])?.is_ack();
        let data = wire::info_data(self.export(), &[kind::BLOCK_SIZE]);
        let answer = talk.ask(option::GO, &data)?;
        if !answer.is_ack() {
            return not(format!("it answers NBD_OPT_GO with {}", answer.name()));
        }
        (profile.size, profile.flags) = described(&answer.before)?;
        profile.sizes = block_sizes(&answer.before);
        // Others know without structured replies alone how that is done.
        let mut entered = Entered::new(talk, Style::Simple, (0, 0), Vec::new());
        if profile.has_extended {
            entered.style = Style::Extended;
        }
        entered.disconnect()?;
        if profile.has_extended {
            let mut talk = self.options()?;
            profile.has_structured = talk.ask(option::STRUCTURED_REPLY, &[])?.is_ack();
            talk.ask(option::ABORT, &[])?;
        }
        Ok(profile)
    }

    pub(super) fn dial(&self) -> io::Result<Socket> {
        let address = self.uri.address();
        let addresses: Vec<SockAddr> = match address {
            Address::Tcp { host, port, .. } => (host.as_str(), *port)
                .to_socket_addrs()?
                .map(SockAddr::from)
                .collect(),
            Address::Unix { path, .. } => vec![SockAddr::unix(OsStr::from_bytes(path))?],
            #[cfg(target_os = "linux")]
            Address::Abstract { name, .. } => {
                vec![SockAddr::unix(OsStr::from_bytes(
                    &[b"\0", &name[..]].concat(),
                ))?]
            }
            #[cfg(target_os = "linux")]
            Address::Vsock { cid, port, .. } => vec![SockAddr::vsock(*cid, *port)],
            _ => Vec::new(),
        };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            let socket = Socket::new(
                Domain::from(i32::from(address.family())),
                Type::STREAM,
                None,
            )?;
            let done = if address.is_ipv4() || address.is_ipv6() {
                socket.set_tcp_nodelay(true)?;
                socket.connect_timeout(&address, self.time)
            } else {
                socket.connect(&address)
            };
            match done {
                Ok(()) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects, and says nothing.
    pub(in crate::check) fn connect(&self) -> Checked<Talk> {
        match self.dial() {
            Ok(socket) => Ok(Talk::client(socket, self.time, &self.record)),
            Err(error) => Err(Fault::Impossible(format!("cannot connect: {error}"))),
        }
    }

    /// Connects and receives the greeting of newstyle.
    pub(in crate::check) fn greeted(&self) -> Checked<(Talk, u16)> {
        match self.begin()? {
            (_, Greeting::Oldstyle, _) => not("the server speaks oldstyle"),
            (talk, _, flags) => Ok((talk, flags)),
        }
    }

    /// Connects as far as to options in the clear, with all flags that are offered.
    pub(in crate::check) fn clear(&self) -> Checked<Talk> {
        self.has_options()?;
        let (mut talk, flags) = self.greeted()?;
        talk.send(
            &u32::from(flags & 3).to_be_bytes(),
            format!("client flags {:#x}", flags & 3),
        )?;
        Ok(talk)
    }

    /// Connects as far as to options, inside TLS if the URI says so.
    pub(in crate::check) fn options(&self) -> Checked<Talk> {
        if self.profile.forces_tls {
            return not("the server wants TLS; check it by a URI that begins with nbds");
        }
        let mut talk = self.clear()?;
        self.secure(&mut talk)?;
        Ok(talk)
    }

    /// Starts TLS if the URI says so.
    fn secure(&self, talk: &mut Talk) -> Checked {
        if !self.is_secure() {
            return Ok(());
        }
        let answer = talk.ask(option::STARTTLS, &[])?;
        if !answer.is_ack() {
            return not(format!("NBD_OPT_STARTTLS is answered by {}", answer.name()));
        }
        self.handshake(talk)
    }

    #[cfg(feature = "tls-base")]
    pub(in crate::check) fn handshake(&self, talk: &mut Talk) -> Checked {
        let Some(tls) = &self.tls else {
            return not("the URI is without TLS");
        };
        let host = match self.uri.address() {
            Address::Tcp { host, .. } => Some(host.as_str()),
            _ => None,
        };
        let made = tls.client(host);
        let (config, name) = made.map_err(|error| Fault::Impossible(error.to_string()))?;
        talk.start_tls(config, name)
    }

    #[cfg(not(feature = "tls-base"))]
    pub(in crate::check) fn handshake(&self, _: &mut Talk) -> Checked {
        not("this build has no TLS")
    }

    /// Agrees on a header style.
    pub(in crate::check) fn agreed(&self, style: Style) -> Checked<Talk> {
        let (is_there, code) = match style {
            Style::Simple => return self.options(),
            Style::Structured => (self.profile.has_structured, option::STRUCTURED_REPLY),
            Style::Extended => (self.profile.has_extended, option::EXTENDED_HEADERS),
        };
        let mut talk = self.options()?;
        if !is_there {
            return not(format!("the server refuses {}", wire::option_name(code)));
        }
        let answer = talk.ask(code, &[])?;
        if !answer.is_ack() {
            return must(format!("{} is refused at times", wire::option_name(code)));
        }
        Ok(talk)
    }

    /// Enters the export.
    pub(in crate::check) fn enter(&self, style: Style) -> Checked<Entered> {
        if style == Style::Simple && self.profile.greeting != Greeting::FixedNewstyle {
            let (talk, greeting, handshake) = self.begin()?;
            return self.without_options(talk, greeting, handshake);
        }
        let talk = self.agreed(style)?;
        self.go(talk, style, Vec::new())
    }

    /// Enters the export with the best headers there are, as clients do.
    pub(in crate::check) fn enter_best(&self) -> Checked<Entered> {
        self.enter(self.best())
    }

    pub(in crate::check) const fn best(&self) -> Style {
        match self.profile {
            Profile {
                has_structured: true,
                ..
            } => Style::Structured,
            Profile {
                has_extended: true, ..
            } => Style::Extended,
            _ => Style::Simple,
        }
    }

    /// Enters the export with `base:allocation`.
    pub(in crate::check) fn enter_with_status(&self, style: Style) -> Checked<Entered> {
        let mut talk = self.agreed(style)?;
        let contexts = self.select(&mut talk, &["base:allocation"])?;
        if contexts.is_empty() {
            return not("the server does not have base:allocation");
        }
        self.go(talk, style, contexts)
    }

    /// Selects contexts, and gives their ids.
    pub(in crate::check) fn select(&self, talk: &mut Talk, queries: &[&str]) -> Checked<Vec<u32>> {
        let data = wire::meta_data(self.export(), queries);
        let answer = talk.ask(option::SET_META, &data)?;
        match answer.last.kind {
            rep::ACK => {}
            rep::ERR_UNSUP => return not("the server has no meta contexts"),
            _ => {
                return must(format!(
                    "NBD_OPT_SET_META_CONTEXT is refused: {}",
                    answer.name()
                ));
            }
        }
        let contexts = answer.before.iter();
        contexts
            .map(|reply| {
                Fields(&reply.data)
                    .u32()
                    .map_or_else(|| must("a context without an id"), Ok)
            })
            .collect()
    }

    /// Enters the export by NBD_OPT_GO.
    pub(in crate::check) fn go(
        &self,
        mut talk: Talk,
        style: Style,
        contexts: Vec<u32>,
    ) -> Checked<Entered> {
        let data = wire::info_data(self.export(), &[kind::BLOCK_SIZE]);
        let answer = talk.ask(option::GO, &data)?;
        if !answer.is_ack() {
            return must(format!(
                "expected NBD_REP_ACK to NBD_OPT_GO, got {}",
                answer.name()
            ));
        }
        let described = described(&answer.before)?;
        let mut entered = Entered::new(talk, style, described, contexts);
        if let Some([.., maximum]) = block_sizes(&answer.before) {
            entered.maximum = maximum.into();
        }
        Ok(entered)
    }

    /// Whether the export has this flag.
    pub(in crate::check) fn has(&self, flag: u16) -> bool {
        self.profile.flags & flag != 0
    }

    /// The rule is about exports with this flag.
    pub(in crate::check) fn needs(&self, flag: u16, name: &str) -> Checked {
        if self.has(flag) || self.profile.forces_tls {
            return Ok(());
        }
        not(format!("{name} is not set"))
    }

    /// The rule is about exports without this flag.
    pub(in crate::check) fn lacks(&self, flag: u16, name: &str) -> Checked {
        if self.has(flag) {
            return not(format!("{name} is set"));
        }
        Ok(())
    }

    /// The minimum block size.
    pub(in crate::check) fn block(&self) -> u64 {
        self.profile
            .sizes
            .map_or(1, |[min, _, _]| min.max(1).into())
    }

    /// The length of a small request that any server takes.
    pub(in crate::check) fn unit(&self) -> u64 {
        self.block().max(512)
    }

    /// The rule reads something.
    pub(in crate::check) fn has_bytes(&self, len: u64) -> Checked {
        if self.profile.size < len {
            return not(format!("the export has {} bytes", self.profile.size));
        }
        Ok(())
    }
}

#[cfg(feature = "tls-base")]
fn trust(connect: &Connect, uri: &Uri) -> Result<ClientTls> {
    use crate::outcome::Context;
    let tls = connect.client_tls()?;
    match uri.tls() {
        Some(parameters) => tls
            .with_uri(parameters)
            .step(|| "the certificates of the URI"),
        None => Ok(tls),
    }
}

/// The size and the flags that an answer to NBD_OPT_INFO or NBD_OPT_GO has.
pub(in crate::check) fn described(replies: &[OptionReply]) -> Checked<(u64, u16)> {
    let mut found = None;
    for reply in replies {
        let mut fields = Fields(&reply.data);
        if reply.kind == rep::INFO && fields.u16() == Some(kind::EXPORT) {
            found = fields.u64().zip(fields.u16());
            if reply.data.len() != 12 {
                return must(format!(
                    "NBD_INFO_EXPORT has 12 bytes, got {} (S-069)",
                    reply.data.len()
                ));
            }
        }
    }
    found.map_or_else(
        || must("expected NBD_INFO_EXPORT before NBD_REP_ACK (S-069)"),
        Ok,
    )
}

pub(in crate::check) fn block_sizes(replies: &[OptionReply]) -> Option<[u32; 3]> {
    replies.iter().find_map(|reply| {
        let mut fields = Fields(&reply.data);
        let is_this = reply.kind == rep::INFO && fields.u16() == Some(kind::BLOCK_SIZE);
        is_this.then(|| Some([fields.u32()?, fields.u32()?, fields.u32()?]))?
    })
}
