//! Servers without options: oldstyle, and newstyle that is not fixed.

use super::{Rule, Server, rule, session::Greeting};
use crate::check::{
    replies::Entered,
    rule::{Checked, Level::*, must, not},
    talk::Talk,
    wire::{self, Fields, NO_ZEROES, Style, option},
};

const OLDSTYLE: &str = "Oldstyle negotiation";
const CLISERV_MAGIC: u64 = 0x0000_4202_8186_1253;

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-008",
        Must,
        "an oldstyle greeting has 124 zeroes at its end",
        OLDSTYLE,
        zeroes,
    ),
    rule(
        "S-008",
        Must,
        "an oldstyle greeting has no handshake flags",
        OLDSTYLE,
        no_handshake_flags,
    ),
];

/// An oldstyle greeting behind its magic numbers.
struct Old {
    size: u64,
    flags: u32,
    reserved: Vec<u8>,
}

impl Server {
    /// Connects and receives the greeting as far as to the handshake flags, if there are any.
    pub(super) fn begin(&self) -> Checked<(Talk, Greeting, u16)> {
        let mut talk = self.connect()?;
        let magics = talk.take(16, "the greeting")?;
        let mut fields = Fields(&magics);
        match (fields.u64(), fields.u64()) {
            (Some(wire::NBDMAGIC), Some(wire::IHAVEOPT)) => {}
            (Some(wire::NBDMAGIC), Some(CLISERV_MAGIC)) => {
                talk.came(&magics, "the magic numbers of oldstyle".into());
                return Ok((talk, Greeting::Oldstyle, 0));
            }
            _ => {
                talk.came(&magics, "no greeting".into());
                return must("expected NBDMAGIC, and IHAVEOPT or the magic number of oldstyle");
            }
        }
        let bytes = talk.take(2, "handshake flags")?;
        let flags = Fields(&bytes).u16().unwrap_or(0);
        talk.came(
            &[magics, bytes].concat(),
            format!("greeting, handshake flags {flags:#x}"),
        );
        let greeting = match flags & wire::FIXED_NEWSTYLE {
            0 => Greeting::Newstyle,
            _ => Greeting::FixedNewstyle,
        };
        Ok((talk, greeting, flags))
    }

    /// The rule is about options.
    pub(super) fn has_options(&self) -> Checked {
        if self.profile.greeting == Greeting::FixedNewstyle {
            return Ok(());
        }
        not("the server has no options")
    }

    /// Enters the export of a server that knows no options but NBD_OPT_EXPORT_NAME, or not even
    /// that, on a connection that it has greeted.
    pub(super) fn without_options(
        &self,
        mut talk: Talk,
        greeting: Greeting,
        handshake: u16,
    ) -> Checked<Entered> {
        if greeting == Greeting::Oldstyle {
            let Old { size, flags, .. } = read_oldstyle(&mut talk)?;
            let [_, _, flags @ ..] = flags.to_be_bytes();
            let flags = u16::from_be_bytes(flags);
            return Ok(Entered::new(talk, Style::Simple, (size, flags), Vec::new()));
        }
        let offered = handshake & NO_ZEROES;
        talk.send(
            &u32::from(offered).to_be_bytes(),
            format!("client flags {offered:#x}"),
        )?;
        talk.option(option::EXPORT_NAME, self.export())?;
        let len = if offered == 0 { 134 } else { 10 };
        let bytes = talk.take(len, "size and flags")?;
        talk.came(&bytes, "size and transmission flags".into());
        let mut fields = Fields(&bytes);
        let (size, flags) = (fields.u64().unwrap_or(0), fields.u16().unwrap_or(0));
        Ok(Entered::new(talk, Style::Simple, (size, flags), Vec::new()))
    }
}

fn read_oldstyle(talk: &mut Talk) -> Checked<Old> {
    let bytes = talk.take(136, "size, flags and zeroes")?;
    talk.came(&bytes, "size, flags and zeroes".into());
    let mut fields = Fields(&bytes);
    let (size, flags) = (fields.u64(), fields.u32());
    Ok(Old {
        size: size.unwrap_or(0),
        flags: flags.unwrap_or(0),
        reserved: fields.0.to_vec(),
    })
}

/// The rule is about oldstyle.
fn oldstyle(server: &Server) -> Checked<Old> {
    match server.begin()? {
        (mut talk, Greeting::Oldstyle, _) => read_oldstyle(&mut talk),
        _ => not("the server speaks newstyle"),
    }
}

fn zeroes(server: &Server) -> Checked {
    let old = oldstyle(server)?;
    if old.reserved.iter().any(|byte| *byte != 0) {
        return must("the 124 bytes are not all zeroes");
    }
    Ok(())
}

fn no_handshake_flags(server: &Server) -> Checked {
    match oldstyle(server)?.flags >> 16 {
        0 => Ok(()),
        more => must(format!("the upper half of the flags is {more:#x}")),
    }
}
