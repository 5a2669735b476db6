//! Replies of a scripted server, and their outcome.

use super::bytes;
use nbd_proto::{Error, Failure, HeaderStyle, client::ContextExtents};

/// The outcomes of requests, by the order in which they were sent.
pub(crate) type Answers = Result<Vec<(usize, Answer)>, Error>;

/// The outcome of one request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Done,
    Data(Vec<u8>),
    Extents(Vec<ContextExtents>),
    Failed(Failure),
}

/// The first request was answered so, and nothing else.
pub(crate) fn only(answer: Answer) -> Answers {
    Ok(vec![(0, answer)])
}

/// The number of the error that the first and only request failed with.
pub(crate) fn errno_of(answers: &Answers) -> u32 {
    match answers.as_deref() {
        Ok([(0, Answer::Failed(failure))]) => failure.errno.code(),
        other => panic!("{other:?}"),
    }
}

/// Writes replies to one request, in the layout of its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replier {
    mode: HeaderStyle,
    pub(crate) cookie: u64,
    offset: u64,
}

impl Replier {
    /// Replies to a request at offset 0.
    pub(crate) fn new(mode: HeaderStyle, cookie: u64) -> Self {
        Self {
            mode,
            cookie,
            offset: 0,
        }
    }

    /// A request at `offset`, which extended chunks echo.
    pub(crate) fn at(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    pub(crate) fn chunk(self, flags: u16, kind: u16, payload: impl AsRef<[u8]>) -> Vec<u8> {
        match self.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                bytes::ch(flags, kind, self.cookie, payload)
            }
            HeaderStyle::Extended => bytes::xch(flags, kind, self.cookie, self.offset, payload),
        }
    }

    /// The header of a chunk with a payload of `len` bytes, which does not follow.
    pub(crate) fn announce(self, flags: u16, kind: u16, len: u32) -> Vec<u8> {
        match self.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                bytes::ch_header(flags, kind, self.cookie, len)
            }
            HeaderStyle::Extended => {
                bytes::xch_header(flags, kind, self.cookie, self.offset, len.into())
            }
        }
    }

    pub(crate) fn none(self) -> Vec<u8> {
        self.chunk(bytes::D, 0, [])
    }

    pub(crate) fn data(self, flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
        self.chunk(flags, 1, bytes::data_at(offset, data))
    }

    pub(crate) fn hole(self, flags: u16, offset: u64, len: u32) -> Vec<u8> {
        self.chunk(flags, 2, bytes::hole_at(offset, len))
    }

    pub(crate) fn extents(self, flags: u16, id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
        if self.mode == HeaderStyle::Extended {
            let wide: Vec<_> = extents.iter().map(|&(l, s)| (l.into(), s.into())).collect();
            let count = u32::try_from(wide.len()).expect("tests are short");
            self.chunk(flags, 6, bytes::xstatus(id, count, &wide))
        } else {
            self.chunk(flags, 5, bytes::status(id, extents))
        }
    }

    pub(crate) fn error(self, flags: u16, errno: u32, message: &str) -> Vec<u8> {
        self.chunk(flags, 0x8001, bytes::error(errno, message))
    }

    pub(crate) fn error_at(self, flags: u16, errno: u32, message: &str, at: u64) -> Vec<u8> {
        self.chunk(flags, 0x8002, bytes::error_at(errno, message, at))
    }

    pub(crate) fn simple(self, error: u32) -> Vec<u8> {
        bytes::sr(error, self.cookie, [])
    }

    /// Failure, in a form that is legal in every mode.
    pub(crate) fn fail(self, errno: u32) -> Vec<u8> {
        match self.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => self.simple(errno),
            HeaderStyle::Extended => self.error(bytes::D, errno, ""),
        }
    }

    /// Success without data, in a form that is legal in every mode.
    pub(crate) fn ok(self) -> Vec<u8> {
        match self.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => self.simple(0),
            HeaderStyle::Extended => self.none(),
        }
    }
}
