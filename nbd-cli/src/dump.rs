//! `nbd dump`: the bytes of a disk, for people.

use crate::{
    connect::{Connect, Opened},
    outcome::{Answer, Result},
    output::Lines,
    range::{Part, reach},
    runtime,
    target::Target,
};
use clap::Args;
use nbd_tokio::{Client, ConnectOptions, ContextName};
use std::ops::Range;

/// Number of bytes that are read at once.
const CHUNK: u64 = 1 << 20;

/// Bytes of a line.
const LINE: usize = 16;

/// Print the bytes of a disk.
#[derive(Debug, Args)]
#[command(after_help = "\
Lines that repeat the one before are collapsed into a \"*\". What the server knows
to be zero is not read.

Examples:
  nbd dump
  nbd dump --length 512 nbd://localhost/disk
  nbd dump --offset 1M --length 4K disk.img")]
pub(crate) struct Dump {
    /// A URI, a file or a block device.
    target: Option<Target>,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    connect: Connect,
}

impl Dump {
    pub(crate) fn run(self) -> Result {
        let Opened { uri, embedded } = Connect::open(self.target.as_ref())?;
        runtime::block_on(async {
            let options: ConnectOptions = self.connect.options()?;
            let options = options.context(ContextName::base_allocation());
            let client = options.connect_uri(&uri).await?;
            let range = self.part.range(client.export().size)?;
            let (range, all) = reach(client.export(), range);
            show(&client, range).await?;
            client.disconnect().await?;
            all
        })?;
        drop(embedded);
        Ok(Answer::Yes)
    }
}

/// Prints a range. Ranges that are known to be zero are not read.
async fn show(client: &Client, range: Range<u64>) -> Result<()> {
    let mut dump = Dumped::new(range.start);
    if !client.has_context(&ContextName::base_allocation()) {
        read(client, range, &mut dump).await?;
        return dump.finish();
    }
    let mut extents = client.extents(range);
    while let Some(run) = extents.next().await {
        let run = run?;
        if run
            .allocation()
            .is_some_and(|allocation| allocation.is_zero())
        {
            dump.zeroes(run.len)?;
        } else {
            read(client, run.offset..run.offset + run.len, &mut dump).await?;
        }
    }
    dump.finish()
}

async fn read(client: &Client, range: Range<u64>, dump: &mut Dumped) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let len = CHUNK.min(range.end - at);
        let data = client
            .read(at, usize::try_from(len).unwrap_or(usize::MAX))
            .await?;
        dump.bytes(&data)?;
        at += len;
    }
    Ok(())
}

/// The printed lines, and the bytes of a line that is not full yet.
struct Dumped {
    lines: Lines,
    /// Offset of the line that is being filled.
    at: u64,
    line: Vec<u8>,
    last: Option<Vec<u8>>,
    collapsed: bool,
}

impl Dumped {
    fn new(at: u64) -> Self {
        Self {
            lines: Lines::new(),
            at,
            line: Vec::with_capacity(LINE),
            last: None,
            collapsed: false,
        }
    }

    fn bytes(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(LINE - self.line.len());
            self.line.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.line.len() == LINE {
                self.put()?;
            }
        }
        Ok(())
    }

    /// So many zeroes, however many.
    fn zeroes(&mut self, mut len: u64) -> Result<()> {
        let zeroes = [0; 2 * LINE];
        // The rest of a line that has begun, and a line that shows that there are zeroes.
        let shown = len.min((LINE - self.line.len() + LINE) as u64);
        self.bytes(&zeroes[..usize::try_from(shown).unwrap_or(0)])?;
        len -= shown;
        let whole = len - len % LINE as u64;
        if whole > 0 {
            self.collapse()?;
            self.at += whole;
        }
        self.bytes(&zeroes[..usize::try_from(len - whole).unwrap_or(0)])
    }

    fn collapse(&mut self) -> Result<()> {
        if !self.collapsed {
            self.collapsed = true;
            self.lines.put(format_args!("*\n"))?;
        }
        Ok(())
    }

    /// Prints the line.
    fn put(&mut self) -> Result<()> {
        if self.last.as_ref() == Some(&self.line) {
            self.collapse()?;
        } else {
            self.collapsed = false;
            self.lines
                .put(format_args!("{:010x}: {}\n", self.at, Hex(&self.line)))?;
            self.last = Some(self.line.clone());
        }
        self.at += self.line.len() as u64;
        self.line.clear();
        Ok(())
    }

    /// Prints the last line, even if it repeats another, so that the end shows.
    fn finish(mut self) -> Result<()> {
        if !self.line.is_empty() {
            self.put()?;
        }
        if self.collapsed {
            self.lines.put(format_args!("{:010x}:\n", self.at))?;
        }
        self.lines.finish()
    }
}

/// A line as numbers and as characters.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for at in 0..LINE {
            match self.0.get(at) {
                Some(byte) => write!(f, "{byte:02x} ")?,
                None => f.write_str("   ")?,
            }
            if at == LINE / 2 - 1 {
                f.write_str(" ")?;
            }
        }
        f.write_str("|")?;
        for byte in self.0 {
            let shown = byte.is_ascii_graphic() || *byte == b' ';
            write!(f, "{}", if shown { char::from(*byte) } else { '.' })?;
        }
        f.write_str("|")
    }
}
