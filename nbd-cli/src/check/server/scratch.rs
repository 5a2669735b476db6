//! The range that writing rules overwrite, which is given back as it was.

use super::Server;
use crate::{
    check::{
        rule::{Checked, Fault, must},
        wire::{Request, command, export},
    },
    outcome::{Context, Error, Result, say},
};
use std::{io::Write, path::PathBuf};
use tempfile::NamedTempFile;

/// Limit of overwritten bytes, from the beginning of the export on.
pub(super) const LEN: u64 = 256 << 10;

/// The bytes that were there, also in a file until they are there again.
#[derive(Debug)]
pub(in crate::check) struct Scratch {
    bytes: Vec<u8>,
    file: NamedTempFile,
}

/// The length of the range.
pub(super) fn len(server: &Server) -> u64 {
    server.profile.size.min(LEN) / server.block() * server.block()
}

impl Scratch {
    /// Keeps the data of the range, and reports that; `None` where rules write nothing.
    pub(in crate::check) fn keep(server: &Server) -> Result<Option<Self>> {
        if !server.writes || server.has(export::READ_ONLY) || server.profile.forces_tls {
            return Ok(None);
        }
        let len = len(server);
        let bytes = server.enter_best().and_then(|mut entered| {
            let bytes = entered.read(0, len)?;
            entered.disconnect()?;
            Ok(bytes)
        });
        let bytes =
            bytes.map_err(|fault| failed(&fault, "cannot read what would be overwritten"))?;
        let file = tempfile::Builder::new().prefix("nbd-check-").tempfile();
        let mut file = file.step(|| "cannot keep what would be overwritten")?;
        let kept = file.write_all(&bytes).and_then(|()| file.flush());
        kept.step(|| "cannot keep what would be overwritten")?;
        say(format_args!(
            "WARNING: the first {len} bytes of the export are overwritten again and again, and \
             written back at the end. Until then a copy of them is in {}",
            file.path().display()
        ));
        Ok(Some(Self { bytes, file }))
    }

    /// Writes the kept data back.
    pub(in crate::check) fn restore(self, server: &Server) -> Result<()> {
        let Err(fault) = self.write_back(server) else {
            return Ok(());
        };
        let kept = self.file.keep().map(|(_, path)| path);
        let place = kept.unwrap_or_else(|_| PathBuf::from("no file"));
        Err(failed(
            &fault,
            &format!(
                "cannot write back what was overwritten, of which a copy is in {}",
                place.display()
            ),
        ))
    }

    fn write_back(&self, server: &Server) -> Checked {
        let mut entered = server.enter_best()?;
        let reply = entered.call(Request::write(0, self.bytes.clone()))?;
        if reply.error != 0 {
            return must(reply.error_name());
        }
        if server.has(export::FLUSH) {
            entered.call(Request::new(command::FLUSH, 0, 0))?;
        }
        if entered.read(0, self.bytes.len() as u64)? != self.bytes {
            return must("it reads as something else");
        }
        entered.disconnect()
    }
}

fn failed(fault: &Fault, what: &str) -> Error {
    let (Fault::Must(text)
    | Fault::Should(text)
    | Fault::Gone(text)
    | Fault::Not(text)
    | Fault::Impossible(text)) = fault;
    Error::new(format!("{what}: {text}"))
}
