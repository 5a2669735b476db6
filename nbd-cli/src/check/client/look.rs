//! Checks of a client's requests.

use super::{
    disk::{Disk, SIZE},
    host::Host,
};
use crate::check::wire::{Request, Style, command, export, flag};

impl Host<'_> {
    /// Checks a request for everything that it must not have.
    pub(super) fn look_at(&self, request: &Request) {
        let Disk {
            sizes: [minimum, _, maximum],
            ..
        } = self.disk();
        let flags = self.flags();
        let what = request.meaning();
        let (offered, allowed) = match request.command {
            command::READ => (true, if flags & export::DF == 0 { 0 } else { flag::DF }),
            command::WRITE => (true, 0),
            command::DISC => (true, 0),
            command::FLUSH => (flags & export::FLUSH != 0, 0),
            command::TRIM => (flags & export::TRIM != 0, 0),
            command::CACHE => (flags & export::CACHE != 0, 0),
            command::WRITE_ZEROES => {
                let fast = if flags & export::FAST_ZERO == 0 {
                    0
                } else {
                    flag::FAST_ZERO
                };
                (flags & export::WRITE_ZEROES != 0, flag::NO_HOLE | fast)
            }
            command::BLOCK_STATUS => (self.has_context, flag::REQ_ONE),
            _ => (false, 0),
        };
        if !offered {
            self.wrong("C-170", format!("{what}: the command was not offered"));
        }
        let fua = if flags & export::FUA == 0 {
            0
        } else {
            flag::FUA
        };
        let payload = match (self.style, request.command) {
            (Style::Extended, command::WRITE) => flag::PAYLOAD_LEN,
            _ => 0,
        };
        if request.flags & !(allowed | fua | payload) != 0 {
            self.wrong("C-169", format!("{what}: a flag that was not offered"));
        }
        if matches!(request.command, command::DISC | command::FLUSH) {
            if request.offset != 0 || request.len != 0 {
                self.wrong("C-177", format!("{what}: offset and length are not 0"));
            }
            return;
        }
        let end = request.offset.checked_add(request.len);
        if end.is_none_or(|end| end > SIZE) {
            self.wrong("C-123", format!("{what}: beyond the end at {SIZE}"));
        }
        if request.len == 0 {
            self.wrong("C-183", format!("{what}: a length of 0"));
        }
        // Without an offer of sizes a cautious client uses 512.
        let minimum = u64::from(minimum);
        if self.asked_for_sizes
            && !(request.offset.is_multiple_of(minimum) && request.len.is_multiple_of(minimum))
        {
            self.wrong("C-121", format!("{what}: no multiple of {minimum}"));
        }
        let has_data = request.command == command::WRITE
            || request.command == command::READ && self.style == Style::Simple;
        if self.asked_for_sizes && has_data && request.len > u64::from(maximum) {
            self.wrong(
                "C-124",
                format!("{what}: more than {maximum} bytes at once"),
            );
        }
        let writes = [command::WRITE, command::TRIM, command::WRITE_ZEROES];
        if flags & export::READ_ONLY != 0 && writes.contains(&request.command) {
            self.wrong("C-171", format!("{what}: the export is read-only"));
        }
    }
}
