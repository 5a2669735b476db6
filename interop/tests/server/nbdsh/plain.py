# Everything that simple replies can carry: the same commands, and no holes.

h.set_request_structured_replies(False)
h.add_meta_context("base:allocation")
h.connect_uri(uri)
assert not h.get_structured_replies_negotiated()
assert not h.can_meta_context("base:allocation")
assert not h.can_df()

data = pattern(3, MIB)
h.pwrite(data, 7)
got, parts = chunks(h, MIB + 14, 0)
assert got == bytes(7) + data + bytes(7)
assert parts == [(0, MIB + 14, False)]
h.zero(1000, 7)
assert h.pread(MIB, 7) == bytes(1000) + data[1000:]

# A command without a reply in this mode is refused, and the connection goes on.
h.set_strict_mode(0)
assert refused(h.block_status, MIB, 0, lambda *args: 0) in ("EINVAL", "ENOTSUP")
assert refused(h.pread, 512, 0, nbd.CMD_FLAG_DF) == "EINVAL"
assert refused(h.pread, 512, h.get_size()) == "EINVAL"
assert h.pread(MIB, 7) == bytes(1000) + data[1000:]
h.shutdown()
