//! Requests of a client to a server without errors.

use super::{
    Rule,
    disk::{BARE, BLOCKS, FULL, READ_ONLY},
    extended,
    judge::Run,
    rule,
    scene::{Event, Scene, honest},
};
use crate::check::{
    rule::{Checked, Fault, Level::*, must, not, should},
    wire::{command, option},
};

const FIXED: &str = "Fixed newstyle negotiation";
const TYPES: &str = "Option types";
const SIZES: &str = "Size constraints";
const REQUEST: &str = "Request message";
const COMMAND_FLAGS: &str = "Command flags";
const FLAGS: &str = "Transmission flags";

pub(super) const RULES: &[Rule] = &[
    rule(
        "C-014",
        Should,
        "NBD_FLAG_C_FIXED_NEWSTYLE is set",
        FIXED,
        (FULL, honest),
        fixed,
    ),
    rule(
        "C-016",
        Must,
        "no client flags but those that were offered",
        "Client flags",
        (FULL, no_no_zeroes),
        client_flags,
    ),
    rule(
        "C-017",
        Must,
        "NBD_OPT_EXPORT_NAME alone without fixed newstyle",
        NEWSTYLE,
        (FULL, not_fixed),
        newstyle,
    ),
    rule(
        "C-022",
        Must,
        "an option waits for the reply to the one before",
        FIXED,
        (FULL, honest),
        one_by_one,
    ),
    rule(
        "C-001",
        Must,
        "names are strings",
        "Conventions",
        (FULL, honest),
        names,
    ),
    rule(
        "C-079",
        Must,
        "NBD_OPT_INFO and NBD_OPT_GO: lengths add up",
        TYPES,
        (FULL, honest),
        lengths,
    ),
    rule(
        "C-080",
        Must,
        "each kind of information is asked for once",
        TYPES,
        (FULL, honest),
        asked_once,
    ),
    rule(
        "C-132",
        Must,
        "options without data have none",
        TYPES,
        (FULL, honest),
        without_data,
    ),
    rule(
        "C-149",
        Must,
        "contexts are selected after structured replies",
        TYPES,
        (FULL, honest),
        after_structured,
    ),
    rule(
        "C-114",
        Should,
        "block sizes are asked for",
        SIZES,
        (FULL, honest),
        asks_for_sizes,
    ),
    rule(
        "C-167",
        Must,
        "requests have their magic number",
        REQUEST,
        (FULL, honest),
        requests,
    ),
    extended(
        "C-140",
        Must,
        "extended requests have theirs",
        REQUEST,
        honest,
        extended_requests,
    ),
    extended(
        "C-145",
        Must,
        "NBD_CMD_WRITE with extended headers has NBD_CMD_FLAG_PAYLOAD_LEN",
        REQUEST,
        honest,
        payload_len,
    ),
    rule(
        "C-169",
        Must,
        "no command flags but those that are offered",
        COMMAND_FLAGS,
        (FULL, honest),
        flags,
    ),
    rule(
        "C-169",
        Must,
        "no command flags to a server that offers none",
        COMMAND_FLAGS,
        (BARE, honest),
        flags,
    ),
    rule(
        "C-170",
        Must,
        "no commands but those that are offered",
        FLAGS,
        (FULL, honest),
        offered,
    ),
    rule(
        "C-170",
        Must,
        "reads and writes alone to a server that offers no more",
        FLAGS,
        (BARE, honest),
        offered,
    ),
    rule(
        "C-171",
        Own,
        "no writes to a read-only export",
        FLAGS,
        (READ_ONLY, honest),
        read_only,
    ),
    rule(
        "C-123",
        Must,
        "no requests beyond the end of the export",
        SIZES,
        (FULL, honest),
        inside,
    ),
    rule(
        "C-183",
        Should,
        "no requests of length 0",
        "Request types",
        (FULL, honest),
        not_empty,
    ),
    rule(
        "C-121",
        Must,
        "requests are multiples of the minimum block size",
        SIZES,
        (BLOCKS, honest),
        aligned,
    ),
    rule(
        "C-124",
        Must,
        "payloads are not above their maximum",
        SIZES,
        (BLOCKS, honest),
        short,
    ),
    rule(
        "C-177",
        Must,
        "NBD_CMD_FLUSH and NBD_CMD_DISC: offset and length are 0",
        "Request types",
        (FULL, honest),
        zeroes,
    ),
    rule(
        "C-186",
        Must,
        "nothing is sent after NBD_CMD_DISC",
        "Request types",
        (FULL, honest),
        nothing_after,
    ),
    rule(
        "C-042",
        Must,
        "NBD_OPT_ABORT or NBD_CMD_DISC ends each connection",
        "Terminating the transmission phase",
        (FULL, honest),
        polite,
    ),
];

const NEWSTYLE: &str = "Newstyle negotiation";

/// Offers fixed newstyle alone.
fn no_no_zeroes(scene: &mut Scene) {
    if let Some(bytes) = scene.at(Event::Greeting) {
        bytes[17] = 1;
    }
}

/// Offers newstyle that is not fixed.
fn not_fixed(scene: &mut Scene) {
    if let Some(bytes) = scene.at(Event::Greeting) {
        bytes[17] = 0;
    }
}

fn fixed(run: &Run) -> Checked {
    match run.keeps("C-014") {
        Err(Fault::Must(text)) => should(text),
        other => other,
    }
}

fn client_flags(run: &Run) -> Checked {
    run.keeps("C-016")
}

fn newstyle(run: &Run) -> Checked {
    run.ended()?;
    run.keeps("C-017")
}

fn one_by_one(run: &Run) -> Checked {
    run.keeps("C-022")
}

fn names(run: &Run) -> Checked {
    run.keeps("C-001")
}

fn lengths(run: &Run) -> Checked {
    run.keeps("C-079")
}

fn asked_once(run: &Run) -> Checked {
    run.keeps("C-080")
}

fn without_data(run: &Run) -> Checked {
    run.keeps("C-132")
}

fn after_structured(run: &Run) -> Checked {
    run.sends_option(option::SET_META)?;
    run.keeps("C-149")
}

fn asks_for_sizes(run: &Run) -> Checked {
    run.sends_option(option::GO)?;
    if run.asked_for_sizes {
        return Ok(());
    }
    should("NBD_OPT_GO does not ask for NBD_INFO_BLOCK_SIZE")
}

fn requests(run: &Run) -> Checked {
    sends(run)?;
    run.keeps("C-167")
}

fn extended_requests(run: &Run) -> Checked {
    run.sends_option(option::EXTENDED_HEADERS)?;
    requests(run)
}

fn payload_len(run: &Run) -> Checked {
    run.sends_option(option::EXTENDED_HEADERS)?;
    if !run.commands.contains(&command::WRITE) {
        return not("the command does not send NBD_CMD_WRITE");
    }
    run.keeps("C-145")
}

fn sends(run: &Run) -> Checked {
    if run.commands.iter().all(|command| *command == command::DISC) {
        return not("the command sends no requests");
    }
    Ok(())
}

fn flags(run: &Run) -> Checked {
    sends(run)?;
    run.keeps("C-169")
}

fn offered(run: &Run) -> Checked {
    sends(run)?;
    run.keeps("C-170")
}

fn read_only(run: &Run) -> Checked {
    sends(run)?;
    run.keeps("C-171")
}

fn inside(run: &Run) -> Checked {
    sends(run)?;
    run.keeps("C-123")
}

fn not_empty(run: &Run) -> Checked {
    sends(run)?;
    match run.keeps("C-183") {
        Err(Fault::Must(text)) => should(text),
        other => other,
    }
}

fn aligned(run: &Run) -> Checked {
    sends(run)?;
    if !run.asked_for_sizes {
        return not("the command does not ask for block sizes");
    }
    run.keeps("C-121")
}

fn short(run: &Run) -> Checked {
    sends(run)?;
    if !run.asked_for_sizes {
        return not("the command does not ask for block sizes");
    }
    run.keeps("C-124")
}

fn zeroes(run: &Run) -> Checked {
    run.keeps("C-177")
}

fn nothing_after(run: &Run) -> Checked {
    if !run.commands.contains(&command::DISC) {
        return not("the command does not send NBD_CMD_DISC");
    }
    run.keeps("C-186")
}

fn polite(run: &Run) -> Checked {
    match run.abrupt {
        0 => Ok(()),
        n => must(format!(
            "{n} of {} connections ended without either",
            run.connections
        )),
    }
}
