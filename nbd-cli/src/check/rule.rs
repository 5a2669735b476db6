//! Rules that are checked, and their results.

use serde::Serialize;

/// The strictness of the specification about a script's expectation. A rule of
/// `docs/conformance.md` may have scripts of several levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// The specification says MUST or MUST NOT.
    Must,
    /// It says SHOULD or SHOULD NOT.
    Should,
    /// It says MAY, and the peer of the one that may has to live with it.
    May,
    /// It says nothing, but anything else would be a fault in any protocol.
    Own,
}

impl Level {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
            Self::May => "MAY",
            Self::Own => "-",
        }
    }
}

/// A section of the specification by its heading.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// In the text itself.
    Protocol(&'static str),
    /// On the branch about extended headers.
    ExtendedHeaders(&'static str),
}

impl Place {
    pub(super) const fn heading(self) -> &'static str {
        match self {
            Self::Protocol(heading) | Self::ExtendedHeaders(heading) => heading,
        }
    }

    pub(super) fn link(self) -> String {
        let branch = match self {
            Self::Protocol(_) => "master",
            Self::ExtendedHeaders(_) => "extension-ext-header",
        };
        let mut link =
            format!("https://github.com/NetworkBlockDevice/nbd/blob/{branch}/doc/proto.md#");
        for c in self.heading().chars() {
            match c {
                ' ' => link.push('-'),
                '-' | '_' => link.push(c),
                c if c.is_ascii_alphanumeric() => link.push(c.to_ascii_lowercase()),
                _ => {}
            }
        }
        link
    }
}

/// The description of a rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    /// Its id in `docs/conformance.md`, which several scripts may share.
    pub(super) id: &'static str,
    pub(super) level: Level,
    /// The expectation.
    pub(super) what: &'static str,
    pub(super) place: Place,
}

/// The reason for which a rule was not passed.
#[derive(Debug)]
pub(super) enum Fault {
    /// A MUST was broken.
    Must(String),
    /// A SHOULD was not kept, which has its reasons at times.
    Should(String),
    /// The peer ended the connection, or was silent, where it had something to say.
    Gone(String),
    /// The rule is about something that the peer does not have.
    Not(String),
    /// There was no connection.
    Impossible(String),
}

pub(super) type Checked<T = ()> = Result<T, Fault>;

impl Fault {
    /// The same where the peer may end the connection, because a MUST was broken towards it.
    pub(super) fn if_it_may_leave(self) -> Self {
        match self {
            Self::Gone(text) => Self::Should(text),
            other => other,
        }
    }

    pub(super) fn may_leave<T>(result: Checked<T>) -> Checked<T> {
        result.map_err(Self::if_it_may_leave)
    }
}

pub(super) fn must<T>(text: impl Into<String>) -> Checked<T> {
    Err(Fault::Must(text.into()))
}

pub(super) fn should<T>(text: impl Into<String>) -> Checked<T> {
    Err(Fault::Should(text.into()))
}

pub(super) fn not<T>(text: impl Into<String>) -> Checked<T> {
    Err(Fault::Not(text.into()))
}

/// The verdict on a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Pass,
    /// A SHOULD was not kept.
    Warning,
    Fail,
    NotApplicable,
    /// There was no time left, or no connection.
    NotDone,
}

impl Verdict {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warning => "warn",
            Self::Fail => "FAIL",
            Self::NotApplicable => "n/a",
            Self::NotDone => "?",
        }
    }
}

/// A message in either direction.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Message {
    /// Of which connection of the rule.
    pub(super) connection: usize,
    /// "client" or "server".
    pub(super) from: &'static str,
    /// Its bytes, or the first of them.
    pub(super) bytes: String,
    pub(super) meaning: String,
}

/// The result of a rule.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) about: About,
    pub(super) verdict: Verdict,
    pub(super) reason: Option<String>,
    /// The messages in both directions, if they show a fault.
    pub(super) transcript: Vec<Message>,
    pub(super) seconds: f64,
}

impl Outcome {
    pub(super) fn new(
        about: About,
        checked: Checked,
        transcript: Vec<Message>,
        seconds: f64,
    ) -> Self {
        let (verdict, reason) = match checked {
            Ok(()) => (Verdict::Pass, None),
            Err(Fault::Must(reason) | Fault::Gone(reason)) => (Verdict::Fail, Some(reason)),
            Err(Fault::Should(reason)) => (Verdict::Warning, Some(reason)),
            Err(Fault::Not(reason)) => (Verdict::NotApplicable, Some(reason)),
            Err(Fault::Impossible(reason)) => (Verdict::NotDone, Some(reason)),
        };
        let shows = matches!(verdict, Verdict::Fail | Verdict::Warning);
        Self {
            about,
            verdict,
            reason,
            transcript: if shows { transcript } else { Vec::new() },
            seconds,
        }
    }
}
