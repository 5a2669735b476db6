//! The outcome of a request, in little space.

use crate::client::Error;
use nbd_proto::client::Outcome;

/// The outcome of a request.
///
/// It goes from table to table, and most replies say no more than that the server has done it. All
/// others are in a box, so that these are moved at the cost of a pointer.
#[derive(Debug, Default)]
pub struct Reply(Option<Box<Result<Outcome, Error>>>);

impl Reply {
    /// Success, and nothing else.
    pub const DONE: Self = Self(None);

    /// Whether the request was carried out.
    #[inline]
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.error().is_none()
    }

    /// The reason why it was not carried out, if it was not.
    #[inline]
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        self.0.as_ref()?.as_ref().as_ref().err()
    }

    /// The outcome as a result.
    ///
    /// # Errors
    ///
    /// When the request was not carried out.
    #[inline]
    pub fn into_result(self) -> Result<Outcome, Error> {
        self.0.map_or(Ok(Outcome::Done), |other| *other)
    }
}

impl From<Result<Outcome, Error>> for Reply {
    #[inline]
    fn from(result: Result<Outcome, Error>) -> Self {
        match result {
            Ok(Outcome::Done) => Self::DONE,
            other => Self(Some(Box::new(other))),
        }
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Err(error).into()
    }
}
