# The common part of the scripts. Each finds the URI of an export in `uri`, and a handle in `h`.

import errno
import os
import urllib.parse

FUA = nbd.CMD_FLAG_FUA
KIB = 1024
MIB = 1024 * KIB


def pattern(seed, size):
    """Bytes that look random, the same for the same seed."""
    import random

    return random.Random(seed).randbytes(size)


def refused(call, *args):
    """The error that a call has to fail with."""
    try:
        call(*args)
    except nbd.Error as error:
        return error.errno
    raise AssertionError("%s%r should have failed" % (call.__name__, args))


def fresh():
    """Another handle, with all that libnbd forbids allowed."""
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.set_strict_mode(0)
    return h


def extended(h):
    """Whether extended headers are in use, which older versions do not know."""
    return getattr(h, "get_extended_headers_negotiated", bool)()


def extents(h, count, offset, flags=0):
    """For each context its extents, as pairs of length and status."""
    found = {}

    def note(context, at, entries, error):
        assert at == offset and error.value == 0
        found[context] = list(zip(entries[::2], entries[1::2]))

    h.block_status(count, offset, note, flags)
    return found


def chunks(h, count, offset, flags=0):
    """The data of a read, and its chunks: offset, length, and whether it is a hole."""
    found = []

    def note(part, at, status, error):
        assert status in (nbd.READ_DATA, nbd.READ_HOLE)
        found.append((at, len(part), status == nbd.READ_HOLE))

    return h.pread_structured(count, offset, note, flags), sorted(found)


h.set_uri_allow_local_file(True)
