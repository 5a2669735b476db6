# Requests that libnbd sends only in its lenient mode. Each is refused by its own error, and the
# connection goes on.

UNKNOWN = 1 << 13


def nothing(*args):
    return 0


def check(h, refusals):
    """Checks each call's error, and that a read still works."""
    before = h.pread(4096, 0)
    for expected, call, *args in refusals:
        found = refused(call, *args)
        assert found == expected, "%s%r: %s and not %s" % (call.__name__, args, found, expected)
        assert h.pread(4096, 0) == before


h = fresh()
h.add_meta_context("base:allocation")
h.connect_uri(uri)
size = h.get_size()
h.pwrite(pattern(7, 4096), 0)
sector = bytes(512)
check(
    h,
    [
        # Past the end, across the end, and so far out that a sum would overflow.
        ("EINVAL", h.pread, 512, size),
        ("EINVAL", h.pread, 512, size - 1),
        ("EINVAL", h.pread, 512, 2**64 - 512),
        ("EINVAL", h.pread, 512, 2**64 - 1),
        ("ENOSPC", h.pwrite, sector, size),
        ("ENOSPC", h.pwrite, sector, size - 511),
        ("ENOSPC", h.pwrite, sector, 2**64 - 512),
        ("ENOSPC", h.zero, 512, size),
        ("ENOSPC", h.zero, 2**32 - 1, 0),
        ("EINVAL", h.trim, 512, size),
        ("EINVAL", h.trim, 2**32 - 1, 0),
        ("EINVAL", h.cache, 512, size),
        ("EINVAL", h.block_status, 512, size, nothing),
        # Longer than any client may ask for.
        ("EINVAL", h.pread, 32 * MIB + 1, 0),
        # Flags that do not exist, or not for this command.
        ("EINVAL", h.pread, 512, 0, UNKNOWN),
        ("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE),
        ("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_REQ_ONE),
        ("EINVAL", h.pwrite, sector, 0, UNKNOWN),
        ("EINVAL", h.pwrite, sector, 0, nbd.CMD_FLAG_DF),
        ("EINVAL", h.flush, UNKNOWN),
        ("EINVAL", h.trim, 512, 0, nbd.CMD_FLAG_FAST_ZERO),
        ("EINVAL", h.zero, 512, 0, nbd.CMD_FLAG_REQ_ONE),
        ("EINVAL", h.cache, 512, 0, UNKNOWN),
        ("EINVAL", h.block_status, 512, 0, nothing, nbd.CMD_FLAG_DF),
        # The one command that has no reply for zero bytes.
        ("EINVAL", h.block_status, 0, 0, nothing),
    ],
)
# Zero bytes are no mistake elsewhere.
assert h.pread(0, 0) == b""
if extended(h):
    # A payload that is announced is one of some bytes.
    assert refused(h.pwrite, b"", 0) == "EINVAL"
else:
    h.pwrite(b"", 0)
h.trim(0, 0)
h.zero(0, 0)
h.cache(0, 0)
h.shutdown()

# A context that was not selected.
h = fresh()
h.connect_uri(uri)
check(h, [("EINVAL", h.block_status, 512, 0, nothing)])
h.shutdown()

# A payload that no side has to accept.
h = fresh()
h.connect_uri(uri)
assert refused(h.pwrite, bytes(32 * MIB + 1), 0) is not None
assert not h.aio_is_ready()
