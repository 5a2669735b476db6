# Features of libnbd from 1.18 on, over extended headers: lengths of 64 bits, and block status of
# some of the contexts. The disk has 3 TiB, with 64 KiB of data at 1 TiB.

BASE = nbd.CONTEXT_BASE_ALLOCATION
PARITY = "x-spy:parity"
TIB = 1 << 40
HOLE = 3


def extents_64(call):
    """For each context its extents."""
    found = {}

    def note(context, at, entries, error):
        assert error.value == 0
        found[context] = entries

    call(note)
    return found


if not hasattr(h, "block_status_64"):
    print("libnbd %s has no extended headers" % h.get_version())
else:
    # Asked for by hand, they come before structured replies and make those needless.
    other = fresh()
    other.set_opt_mode(True)
    other.set_request_meta_context(False)
    other.set_request_extended_headers(False)
    other.set_request_structured_replies(False)
    other.connect_uri(uri)
    assert not extended(other)
    assert other.opt_extended_headers()
    assert extended(other)
    # Once is enough.
    assert not other.opt_extended_headers()
    other.opt_go()
    assert other.pread(4096, 0) == bytes(4096)
    other.shutdown()

    h.add_meta_context(BASE)
    h.add_meta_context(PARITY)
    h.connect_uri(uri)
    assert extended(h) and h.get_size() == 3 * TIB
    assert h.can_block_status_payload()

    found = extents_64(lambda note: h.block_status_64(3 * TIB, 0, note, nbd.CMD_FLAG_REQ_ONE))
    assert found == {BASE: [(TIB, HOLE)], PARITY: [(MIB, 0)]}, found
    found = extents_64(lambda note: h.block_status_filter(3 * TIB, 0, [BASE], note))
    assert found == {BASE: [(TIB, HOLE), (64 * KIB, 0), (2 * TIB - 64 * KIB, HOLE)]}, found
    found = extents_64(lambda note: h.block_status_filter(2 * MIB, MIB, [PARITY], note))
    assert found == {PARITY: [(MIB, 1), (MIB, 0)]}, found

    # A terabyte at once, fast.
    h.zero(TIB, TIB + 4096, nbd.CMD_FLAG_FAST_ZERO)
    h.trim(TIB, 0, FUA)
    h.cache(2 * TIB, 0)
    assert h.pread(4096, TIB) != bytes(4096)
    assert h.pread(60 * KIB, TIB + 4096) == bytes(60 * KIB)

    # Errors are reported as ever, and the connection goes on.
    h.set_strict_mode(0)
    assert refused(h.zero, 3 * TIB, 1) == "ENOSPC"
    assert refused(h.trim, 2**63, 0) == "EINVAL"
    assert refused(h.block_status_64, 2**63, 0, lambda *args: 0) == "EINVAL"
    assert refused(h.pread, 512, 3 * TIB) == "EINVAL"
    # A payload where none belongs is thrown away.
    assert refused(h.pwrite, bytes(512), 0, nbd.CMD_FLAG_REQ_ONE) == "EINVAL"
    data, parts = chunks(h, 8192, TIB)
    assert data[:4096] != bytes(4096) and data[4096:] == bytes(4096)
    h.shutdown()
