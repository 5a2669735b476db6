//! The verdict on a client, from its run.

use crate::check::rule::{Checked, Fault, must, not, should};

/// The end of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    Code(i32),
    Signal(i32),
    /// It was killed when there was no time left.
    #[default]
    Late,
}

/// One run of the command.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) end: End,
    /// Number of its connections.
    pub(super) connections: usize,
    /// Whether a message was sent that is wrong.
    pub(super) is_spoilt: bool,
    /// Whether a message of the client came after that on the same connection.
    pub(super) went_on_after_spoilt: bool,
    /// Violations in the client's messages, by rule.
    pub(super) wrongs: Vec<(&'static str, String)>,
    /// Number of connections that ended otherwise than by NBD_OPT_ABORT and NBD_CMD_DISC.
    pub(super) abrupt: usize,
    /// Options and requests after a message that allowed none.
    pub(super) went_on: Option<String>,
    /// Whether NBD_OPT_GO asked for block sizes.
    pub(super) asked_for_sizes: bool,
    /// The options and commands that it sent.
    pub(super) options: Vec<u32>,
    pub(super) commands: Vec<u16>,
}

impl Run {
    /// The client neither crashed nor hung.
    pub(super) fn ended(&self) -> Checked<i32> {
        match self.end {
            End::Code(code) => Ok(code),
            End::Signal(number) => must(format!("the command was ended by signal {number}")),
            End::Late => must("the command hung and was killed"),
        }
    }

    fn was_spoilt(&self) -> Checked {
        if self.connections == 0 {
            return must("the command made no connection");
        }
        if !self.is_spoilt {
            return not("the command does nothing that this rule is about");
        }
        Ok(())
    }

    /// The rule is about clients that send such an option.
    pub(super) fn sends_option(&self, code: u32) -> Checked {
        if self.options.contains(&code) {
            return Ok(());
        }
        not(format!(
            "the command does not send {}",
            crate::check::wire::option_name(code)
        ))
    }

    /// No message of the client breaks this rule.
    pub(super) fn keeps(&self, id: &str) -> Checked {
        if self.connections == 0 {
            return not("the command made no connection");
        }
        match self.wrongs.iter().find(|(wrong, _)| *wrong == id) {
            Some((_, text)) => must(text.clone()),
            None => Ok(()),
        }
    }
}

/// The client has to live with it.
pub(super) fn tolerates(run: &Run) -> Checked {
    run.was_spoilt()?;
    match run.ended()? {
        0 => Ok(()),
        code => must(format!("the command failed with exit code {code}")),
    }
}

/// It should live with it.
pub(super) fn should_tolerate(run: &Run) -> Checked {
    run.was_spoilt()?;
    match run.ended()? {
        0 => Ok(()),
        code => should(format!("the command failed with exit code {code}")),
    }
}

/// The client must not accept the message. A command may go on without the information, if it has
/// ended the connection at once.
pub(super) fn refuses(run: &Run) -> Checked {
    run.was_spoilt()?;
    match run.ended()? {
        0 if run.went_on_after_spoilt => must("the command succeeded, and the connection went on"),
        _ => Ok(()),
    }
}

/// The same where a client may end the connection, and need not.
pub(super) fn should_refuse(run: &Run) -> Checked {
    match refuses(run) {
        Err(Fault::Must(text)) if run.end == End::Code(0) => should(text),
        other => other,
    }
}

/// A request has failed as it may, and so should the command, unless it can do without.
pub(super) fn fails_then(run: &Run) -> Checked {
    run.was_spoilt()?;
    match run.ended()? {
        0 => should("the command succeeded"),
        _ => Ok(()),
    }
}

/// It may do as it likes, but for a crash or a hang.
pub(super) fn survives(run: &Run) -> Checked {
    run.was_spoilt()?;
    run.ended().map(|_| ())
}

/// It must not send anything but the end after that.
pub(super) fn leaves(run: &Run) -> Checked {
    run.was_spoilt()?;
    run.ended()?;
    match &run.went_on {
        Some(text) => must(text.clone()),
        None => Ok(()),
    }
}
