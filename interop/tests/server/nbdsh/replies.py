# Replies to reads and to questions for block status. The caller has put 64 KiB of data at 1 MiB
# into 4 MiB of nothing.

PARITY = "x-spy:parity"
BASE = nbd.CONTEXT_BASE_ALLOCATION
DATA, HOLE = 0, nbd.STATE_HOLE | nbd.STATE_ZERO

h.add_meta_context(BASE)
h.add_meta_context(PARITY)
h.add_meta_context("no:such")
h.connect_uri(uri)
assert h.get_structured_replies_negotiated()
assert h.can_meta_context(BASE) and h.can_meta_context(PARITY)
assert not h.can_meta_context("no:such")

# A hole is described and not sent.
page = h.pread(64 * KIB, MIB)
assert page != bytes(64 * KIB)
data, parts = chunks(h, 2 * MIB, 0)
assert data == bytes(MIB) + page + bytes(MIB - 64 * KIB)
assert parts == [(0, MIB, True), (MIB, 64 * KIB, False), (MIB + 64 * KIB, MIB - 64 * KIB, True)]
data, parts = chunks(h, MIB, 2 * MIB)
assert data == bytes(MIB) and parts == [(2 * MIB, MIB, True)]

# In one piece, if that is wanted.
data, parts = chunks(h, 2 * MIB, 0, nbd.CMD_FLAG_DF)
assert data == bytes(MIB) + page + bytes(MIB - 64 * KIB)
assert parts == [(0, 2 * MIB, False)]

# All contexts at once.
assert extents(h, 4 * MIB, 0) == {
    BASE: [(MIB, HOLE), (64 * KIB, DATA), (3 * MIB - 64 * KIB, HOLE)],
    PARITY: [(MIB, 0), (MIB, 1), (MIB, 0), (MIB, 1)],
}
assert extents(h, 3, MIB + 64 * KIB - 1) == {BASE: [(1, DATA), (2, HOLE)], PARITY: [(3, 1)]}
assert extents(h, 3 * MIB, MIB, nbd.CMD_FLAG_REQ_ONE) == {
    BASE: [(64 * KIB, DATA)],
    PARITY: [(MIB, 1)],
}
h.shutdown()
