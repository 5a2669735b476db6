//! The command line as a whole.

use crate::{
    bench, check, compare, copy, descriptors, dump, generate, info, list, log, map, object,
    outcome::Result, ping, serve,
};
use clap::{ArgAction, Args, Parser, Subcommand};
use std::sync::LazyLock;

/// Look at, copy, compare, serve and measure disks over NBD.
#[derive(Debug, Parser)]
#[command(
    name = "nbd",
    version = version(),
    propagate_version = true,
    max_term_width = 100,
    disable_help_flag = true,
    disable_help_subcommand = true,
    after_help = "\
A disk is named by a URI: nbd://HOST[:PORT]/EXPORT, with TLS nbds://HOST/EXPORT,
nbd+unix:///EXPORT?socket=PATH. QEMU's nbd:HOST:PORT:exportname=EXPORT will do
as well. Disks on object storage are s3://BUCKET/PREFIX, gs://BUCKET/PREFIX,
az://CONTAINER/PREFIX and file:///DIRECTORY, and their snapshots have @NAME at
the end. Anything else is a file or a block device. Without a name, a server in
this process has a small disk to try things with.

Exit codes: 0 for yes, the same, done; 1 for no, different; 2 for an error; 130
after Ctrl-C.

Examples:
  nbd info                         a disk in this process, to try it
  nbd map nbd://localhost/disk
  nbd info --help"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Info(info::Info),
    List(list::List),
    Map(map::Map),
    Dump(dump::Dump),
    Copy(copy::Copy),
    Compare(compare::Compare),
    Ping(ping::Ping),
    Serve(Box<serve::Serve>),
    Bench(bench::Bench),
    Check(check::Check),
    Object(object::Object),
    Generate(generate::Generate),
}

/// Behind the options of the command itself, in its help.
const LAST: usize = 900;

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Log connections; -vv requests, -vvv messages.
    ///
    /// The log goes to standard error.
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = LAST)]
    pub(crate) verbose: u8,
    /// Say nothing but results and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = LAST + 1)]
    pub(crate) quiet: bool,
    /// Print help.
    #[arg(short, long, global = true, action = ArgAction::HelpShort, display_order = LAST + 2)]
    help: Option<bool>,
}

impl Cli {
    pub(crate) fn run(self) -> Result {
        let Self {
            mut common,
            command,
        } = self;
        if matches!(command, Command::Ping(_)) && common.verbose > 0 {
            // The events that a program looks for with it are messages.
            common.verbose = u8::MAX;
        }
        let server = match &command {
            Command::Serve(serve) => Some(serve.logging()),
            _ => None,
        };
        if !matches!(command, Command::Generate(_)) {
            descriptors::check()?;
        }
        let _logging = log::start(&common, server)?;
        match command {
            Command::Info(info) => info.run(),
            Command::List(list) => list.run(),
            Command::Map(map) => map.run(),
            Command::Dump(dump) => dump.run(),
            Command::Copy(copy) => copy.run(&common),
            Command::Compare(compare) => compare.run(&common),
            Command::Ping(ping) => ping.run(),
            Command::Serve(serve) => serve.run(common.quiet),
            Command::Bench(bench) => bench.run(),
            Command::Check(check) => check.run(common.quiet),
            Command::Object(object) => object.run(),
            Command::Generate(generate) => generate.run(),
        }
    }
}

/// The version with the features of this build.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let tls = if cfg!(feature = "tls") {
            "TLS by rustls with aws-lc-rs"
        } else if cfg!(feature = "tls-ring") {
            "TLS by rustls with ring"
        } else {
            "no TLS"
        };
        let cloud = if cfg!(feature = "cloud") {
            "disks in S3, GCS and Azure"
        } else {
            "no S3, GCS and Azure"
        };
        format!("{} ({tls}; {cloud})", env!("CARGO_PKG_VERSION"))
    });
    &VERSION
}
