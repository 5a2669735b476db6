//! The rules that programs of others break, each judged in a sentence.

use interop::Peer;

/// A rule that a program breaks, and a sentence about it.
pub(super) struct Judged {
    pub(super) program: Peer,
    pub(super) id: &'static str,
    /// The result, in the words of the tables.
    pub(super) verdict: &'static str,
    /// Whether that depends on the order of events.
    pub(super) at_times: bool,
    /// The ending of the descriptions of the configurations that break it.
    pub(super) only: &'static str,
    pub(super) why: &'static str,
}

const fn judged(
    program: Peer,
    id: &'static str,
    verdict: &'static str,
    why: &'static str,
) -> Judged {
    Judged {
        program,
        id,
        verdict,
        at_times: false,
        only: "",
        why,
    }
}

const fn at_times(
    program: Peer,
    id: &'static str,
    verdict: &'static str,
    why: &'static str,
) -> Judged {
    Judged {
        at_times: true,
        ..judged(program, id, verdict, why)
    }
}

/// The rule is broken in some configurations.
const fn only(only: &'static str, judged: Judged) -> Judged {
    Judged { only, ..judged }
}

const TLS: &str = "over TLS";
const OLDSTYLE: &str = "oldstyle";

pub(super) const JUDGED: &[Judged] = &[
    judged(
        Peer::QemuNbd,
        "S-159",
        "warning",
        "writes beyond the end get `NBD_EINVAL` instead of `NBD_ENOSPC`",
    ),
    judged(
        Peer::QemuNbd,
        "S-160",
        "warning",
        "a write to a read-only export gets `NBD_EINVAL` instead of `NBD_EPERM`",
    ),
    at_times(
        Peer::QemuNbd,
        "S-164",
        "warning",
        "`NBD_CMD_DISC` right behind reads ends the connection before their replies",
    ),
    only(
        TLS,
        judged(
            Peer::QemuNbd,
            "S-047",
            "warning",
            "`NBD_OPT_STARTTLS` with data ends the connection",
        ),
    ),
    only(
        TLS,
        judged(
            Peer::QemuNbd,
            "S-056",
            "fail",
            "`NBD_OPT_ABORT` before TLS gets `NBD_REP_ERR_TLS_REQD`",
        ),
    ),
    only(
        TLS,
        judged(
            Peer::QemuNbd,
            "S-085",
            "warning",
            "connections end without an end of TLS",
        ),
    ),
    only(
        TLS,
        judged(
            Peer::QemuNbd,
            "S-164",
            "fail",
            "the same after `NBD_CMD_DISC`, where it must not",
        ),
    ),
    judged(
        Peer::QemuStorageDaemon,
        "S-159",
        "warning",
        "see `qemu-nbd`",
    ),
    at_times(
        Peer::QemuStorageDaemon,
        "S-164",
        "warning",
        "see `qemu-nbd`",
    ),
    judged(
        Peer::Nbdkit,
        "S-130",
        "fail",
        "the same query twice gets two `NBD_REP_META_CONTEXT` with one id, and ids are to be unique",
    ),
    judged(
        Peer::Nbdkit,
        "S-154",
        "fail",
        "a fast zero that was not offered ends the whole server: the assertion `can_fast_zero == 1` fails",
    ),
    at_times(
        Peer::Nbdkit,
        "S-164",
        "warning",
        "reads get `NBD_ESHUTDOWN` if `NBD_CMD_DISC` is right behind them",
    ),
    at_times(
        Peer::Nbdkit,
        "S-233",
        "fail",
        "a client that leaves with reads in flight can end the whole server: the assertion `sock >= 0` fails",
    ),
    only(
        TLS,
        judged(
            Peer::Nbdkit,
            "S-148",
            "warning",
            "the payload of a write that is refused is read past TLS, and the connection hangs",
        ),
    ),
    only(TLS, judged(Peer::Nbdkit, "S-159", "warning", "the same")),
    only(
        OLDSTYLE,
        judged(
            Peer::Nbdkit,
            "S-220",
            "fail",
            "the flags of oldstyle announce `NBD_CMD_FLUSH` and all other commands, which get `NBD_EINVAL`",
        ),
    ),
    only(OLDSTYLE, judged(Peer::Nbdkit, "S-221", "fail", "the same")),
    only(
        OLDSTYLE,
        judged(
            Peer::Nbdkit,
            "S-222",
            "fail",
            "the same with `NBD_CMD_FLAG_FUA`",
        ),
    ),
    only(OLDSTYLE, judged(Peer::Nbdkit, "S-149", "fail", "the same")),
    only(
        OLDSTYLE,
        judged(
            Peer::Nbdkit,
            "S-225",
            "fail",
            "the same with `NBD_CMD_WRITE_ZEROES`",
        ),
    ),
    only(OLDSTYLE, judged(Peer::Nbdkit, "S-151", "fail", "the same")),
    only(OLDSTYLE, judged(Peer::Nbdkit, "S-155", "fail", "the same")),
    only(
        OLDSTYLE,
        judged(
            Peer::Nbdkit,
            "S-224",
            "fail",
            "the same with `NBD_CMD_TRIM`",
        ),
    ),
    judged(
        Peer::NbdServer,
        "S-031",
        "fail",
        "`NBD_OPT_ABORT` ends the connection without `NBD_REP_ACK`; earlier versions of the specification were unclear here",
    ),
    judged(Peer::NbdServer, "S-032", "warning", "the same with data"),
    judged(
        Peer::NbdServer,
        "S-080",
        "fail",
        "`NBD_OPT_INFO` says that the size is 0",
    ),
    judged(
        Peer::NbdServer,
        "S-068",
        "warning",
        "lengths that do not add up: it is silent, at once or after its answer",
    ),
    judged(
        Peer::NbdServer,
        "S-030",
        "warning",
        "after its answer to a name above 4096 bytes it is silent",
    ),
    judged(
        Peer::NbdServer,
        "S-150",
        "warning",
        "`NBD_CMD_FLAG_FUA` without an offer is taken",
    ),
    only(
        TLS,
        judged(
            Peer::NbdServer,
            "S-047",
            "warning",
            "`NBD_OPT_STARTTLS` with data: it is silent",
        ),
    ),
    only(
        TLS,
        judged(
            Peer::NbdServer,
            "S-056",
            "fail",
            "`NBD_OPT_ABORT` ends the connection without `NBD_REP_ACK` before TLS, too",
        ),
    ),
    only(
        TLS,
        judged(
            Peer::NbdServer,
            "S-085",
            "warning",
            "connections end without an end of TLS",
        ),
    ),
    only(
        TLS,
        judged(
            Peer::NbdServer,
            "S-164",
            "fail",
            "the same after `NBD_CMD_DISC`, where it must not",
        ),
    ),
    judged(
        Peer::NbdInfo,
        "C-086",
        "warning",
        "an export without a size is described; a client need not check that",
    ),
    judged(
        Peer::NbdInfo,
        "C-199",
        "warning",
        "a failed read only leaves out the guess at the content",
    ),
    judged(Peer::NbdInfo, "C-213", "warning", "the same"),
    judged(Peer::NbdInfo, "C-219", "warning", "the same"),
    judged(Peer::NbdInfo, "C-221", "warning", "the same"),
    judged(
        Peer::NbdInfo,
        "C-215",
        "fail",
        "an error chunk with the error 0 does not end the connection",
    ),
    judged(Peer::NbdInfo, "C-224", "fail", "see `nbdcopy`"),
    judged(Peer::NbdInfo, "C-226", "warning", "see `nbdcopy`"),
    judged(Peer::NbdInfo, "C-227", "fail", "see `nbdcopy`"),
    judged(Peer::NbdInfo, "C-230", "warning", "see `nbdcopy`"),
    only(
        TLS,
        judged(Peer::NbdInfo, "C-059", "warning", "see `nbdcopy`"),
    ),
    judged(
        Peer::NbdCopy,
        "C-124",
        "fail",
        "writes 256 KiB at once where 64 KiB is the maximum payload that it has asked for",
    ),
    judged(
        Peer::NbdCopy,
        "C-224",
        "fail",
        "libnbd takes a data chunk without data",
    ),
    judged(
        Peer::NbdCopy,
        "C-226",
        "warning",
        "libnbd takes overlapping chunks; a client may do so",
    ),
    judged(
        Peer::NbdCopy,
        "C-227",
        "fail",
        "libnbd takes a hole of size 0",
    ),
    judged(
        Peer::NbdCopy,
        "C-230",
        "warning",
        "a read with a gap succeeds; a client may do so, at the risk of its data",
    ),
    judged(
        Peer::NbdCopy,
        "C-243",
        "fail",
        "libnbd takes an extent of length 0",
    ),
    only(
        TLS,
        judged(
            Peer::NbdCopy,
            "C-059",
            "warning",
            "a certificate that is made for clients is taken for a server's",
        ),
    ),
    judged(
        Peer::QemuImg,
        "C-226",
        "warning",
        "overlapping chunks are taken; a client may do so",
    ),
    judged(
        Peer::QemuImg,
        "C-230",
        "warning",
        "a read with a gap succeeds; a client may do so, at the risk of its data",
    ),
    judged(
        Peer::QemuImg,
        "C-238",
        "fail",
        "a status chunk with half an extent at its end is taken",
    ),
    judged(
        Peer::QemuImg,
        "C-257",
        "warning",
        "the offset of an extended reply is not compared; a client need not check that",
    ),
    only(
        TLS,
        judged(
            Peer::QemuImg,
            "C-036",
            "fail",
            "`NBD_OPT_ABORT` ends the connection without an end of TLS",
        ),
    ),
    only(
        TLS,
        judged(
            Peer::QemuImg,
            "C-059",
            "warning",
            "a certificate that is made for clients is taken for a server's",
        ),
    ),
    judged(
        Peer::QemuIo,
        "C-145",
        "fail",
        "writes have no `NBD_CMD_FLAG_PAYLOAD_LEN` with extended headers",
    ),
    judged(
        Peer::QemuIo,
        "C-188",
        "fail",
        "`NBD_ESHUTDOWN` is an error like others, and requests go on",
    ),
    judged(Peer::QemuIo, "C-226", "warning", "see `qemu-img`"),
    judged(Peer::QemuIo, "C-230", "warning", "see `qemu-img`"),
    judged(Peer::QemuIo, "C-257", "warning", "see `qemu-img`"),
    judged(
        Peer::NbdClient,
        "C-007",
        "fail",
        "a second magic number that it does not know is taken; its other work is the kernel's",
    ),
    judged(
        Peer::Fio,
        "C-042",
        "fail",
        "connections are closed without `NBD_CMD_DISC`",
    ),
    at_times(
        Peer::Fio,
        "C-188",
        "fail",
        "`NBD_ESHUTDOWN` is an error like others, and requests go on",
    ),
    judged(
        Peer::Fio,
        "C-224",
        "fail",
        "see `nbdcopy`, whose library it uses",
    ),
    judged(Peer::Fio, "C-226", "warning", "see `nbdcopy`"),
    judged(Peer::Fio, "C-227", "fail", "see `nbdcopy`"),
    judged(Peer::Fio, "C-230", "warning", "see `nbdcopy`"),
];
