//! From the host's errors to the eight that the protocol knows.
//!
//! Spec: [Error values](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#error-values).

use nbd_proto::{Errno, Failure};
use std::io::{self, ErrorKind};

/// Error numbers of the host that [`ErrorKind`] does not distinguish, or not in every version of
/// the standard library. Other systems have other numbers; there the kind decides alone.
#[cfg(target_os = "linux")]
mod host {
    pub(super) const EOVERFLOW: i32 = 75;
    pub(super) const EOPNOTSUPP: i32 = 95;
    pub(super) const ESHUTDOWN: i32 = 108;
}

/// Converts an error of the host to the failure for the client.
///
/// | host | kind | client |
/// | --- | --- | --- |
/// | `EPERM`, `EACCES` | [`ErrorKind::PermissionDenied`] | [`Errno::Perm`] |
/// | `EROFS` | [`ErrorKind::ReadOnlyFilesystem`] | [`Errno::Perm`] |
/// | `ENOSPC` | [`ErrorKind::StorageFull`] | [`Errno::NoSpc`] |
/// | `EDQUOT` | [`ErrorKind::QuotaExceeded`] | [`Errno::NoSpc`] |
/// | `EFBIG` | [`ErrorKind::FileTooLarge`] | [`Errno::NoSpc`] |
/// | `EINVAL` | [`ErrorKind::InvalidInput`] | [`Errno::Inval`] |
/// | `ENOSYS`, `EOPNOTSUPP` (95 on Linux) | [`ErrorKind::Unsupported`] | [`Errno::Inval`] |
/// | `EOVERFLOW` (75 on Linux) | | [`Errno::Inval`] |
/// | `ESHUTDOWN` (108 on Linux) | | [`Errno::Shutdown`] |
/// | `EIO`, `ENOMEM` and all others | | [`Errno::Io`] |
///
/// `ENOTSUP` and `EOVERFLOW` mean something particular in the protocol, and `ENOMEM` is to be
/// avoided: none of the three is ever passed on. The text of the error is, without the offset.
#[must_use]
pub fn failure(error: &io::Error) -> Failure {
    Failure {
        message: error.to_string().into(),
        ..errno(error).into()
    }
}

/// Like [`failure`], for a fast zero: an operation that the host does not support is
/// [`Errno::NotSup`].
///
/// Only to be used where [`ZeroMode::fast`](crate::ZeroMode::fast) is set and nothing was changed.
#[must_use]
pub fn fast_zero_failure(error: &io::Error) -> Failure {
    if is_unsupported(error) {
        Failure {
            message: error.to_string().into(),
            ..Errno::NotSup.into()
        }
    } else {
        failure(error)
    }
}

/// The answer to a client for a back end's failure: one of the protocol's numbers, with
/// [`Errno::NotSup`] only in answer to a `fast_zero` and [`Errno::Overflow`] never.
///
/// A server passes every failure of an [`Export`](crate::Export) through this, and reports for
/// itself that a read or a request was too long.
#[must_use]
pub fn reportable(failure: Failure, fast_zero: bool) -> Failure {
    let errno = failure.errno.normalized();
    let misplaced = errno == Errno::Overflow || (errno == Errno::NotSup && !fast_zero);
    Failure {
        errno: if misplaced { Errno::Inval } else { errno },
        ..failure
    }
}

fn errno(error: &io::Error) -> Errno {
    #[cfg(target_os = "linux")]
    match error.raw_os_error() {
        Some(host::EOVERFLOW) => return Errno::Inval,
        Some(host::ESHUTDOWN) => return Errno::Shutdown,
        _ => {}
    }
    if is_unsupported(error) {
        return Errno::Inval;
    }
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else went wrong is the storage's fault and not the request's"
    )]
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Errno::Perm,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Errno::NoSpc,
        ErrorKind::InvalidInput => Errno::Inval,
        _ => Errno::Io,
    }
}

pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    #[cfg(target_os = "linux")]
    if error.raw_os_error() == Some(host::EOPNOTSUPP) {
        return true;
    }
    error.kind() == ErrorKind::Unsupported
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_number() {
        // S-227, S-229, S-230
        for (kind, expected) in [
            (ErrorKind::PermissionDenied, Errno::Perm),
            (ErrorKind::ReadOnlyFilesystem, Errno::Perm),
            (ErrorKind::StorageFull, Errno::NoSpc),
            (ErrorKind::QuotaExceeded, Errno::NoSpc),
            (ErrorKind::FileTooLarge, Errno::NoSpc),
            (ErrorKind::InvalidInput, Errno::Inval),
            (ErrorKind::Unsupported, Errno::Inval),
            (ErrorKind::OutOfMemory, Errno::Io),
            (ErrorKind::UnexpectedEof, Errno::Io),
            (ErrorKind::TimedOut, Errno::Io),
            (ErrorKind::Other, Errno::Io),
        ] {
            assert_eq!(failure(&kind.into()).errno, expected, "{kind}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn every_number_of_the_host_has_its_own() {
        // S-227, S-229, S-230
        for (name, raw, expected) in [
            ("EPERM", 1, Errno::Perm),
            ("EINTR", 4, Errno::Io),
            ("EIO", 5, Errno::Io),
            ("ENXIO", 6, Errno::Io),
            ("EBADF", 9, Errno::Io),
            ("ENOMEM", 12, Errno::Io),
            ("EACCES", 13, Errno::Perm),
            ("ENODEV", 19, Errno::Io),
            ("EINVAL", 22, Errno::Inval),
            ("EFBIG", 27, Errno::NoSpc),
            ("ENOSPC", 28, Errno::NoSpc),
            ("EROFS", 30, Errno::Perm),
            ("ENOSYS", 38, Errno::Inval),
            ("EOVERFLOW", 75, Errno::Inval),
            ("EOPNOTSUPP", 95, Errno::Inval),
            ("ESHUTDOWN", 108, Errno::Shutdown),
            ("EDQUOT", 122, Errno::NoSpc),
        ] {
            let error = io::Error::from_raw_os_error(raw);
            assert_eq!(failure(&error).errno, expected, "{name}");
        }
        for raw in 0..200 {
            let errno = failure(&io::Error::from_raw_os_error(raw)).errno;
            assert!(
                matches!(
                    errno,
                    Errno::Perm | Errno::Io | Errno::Inval | Errno::NoSpc | Errno::Shutdown
                ),
                "{raw} became {errno}"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn enotsup_is_only_said_of_a_fast_zero() {
        // S-229
        let unsupported = io::Error::from_raw_os_error(95);
        assert_eq!(failure(&unsupported).errno, Errno::Inval);
        assert_eq!(fast_zero_failure(&unsupported).errno, Errno::NotSup);
        let full = io::Error::from_raw_os_error(28);
        assert_eq!(fast_zero_failure(&full).errno, Errno::NoSpc);
    }

    #[test]
    fn a_back_ends_own_number_is_made_legal() {
        // S-227, S-228, S-229
        for errno in Errno::ALL {
            let slow = reportable((*errno).into(), false).errno;
            let fast = reportable((*errno).into(), true).errno;
            let expected = if *errno == Errno::NotSup {
                (Errno::Inval, Errno::NotSup)
            } else if *errno == Errno::Overflow {
                (Errno::Inval, Errno::Inval)
            } else {
                (*errno, *errno)
            };
            assert_eq!((slow, fast), expected);
        }
        for code in [0, 2, 122, u32::MAX] {
            assert_eq!(
                reportable(Errno::from(code).into(), true).errno,
                Errno::Inval
            );
        }
    }

    #[test]
    fn the_text_of_an_error_is_passed_on() {
        let error = io::Error::other("the tape is torn");
        assert_eq!(failure(&error).message.as_str(), "the tape is torn");
        assert_eq!(failure(&error).offset, None);
    }
}
