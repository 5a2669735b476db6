# Clients of before the fixed newstyle handshake, which know only `NBD_OPT_EXPORT_NAME`.

for flags in (0, nbd.HANDSHAKE_FLAG_NO_ZEROES, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE):
    h = fresh()
    h.set_handshake_flags(flags)
    h.connect_uri(uri)
    if flags & nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE:
        assert h.get_structured_replies_negotiated()
    else:
        assert h.get_protocol() == "newstyle"
        assert not h.get_structured_replies_negotiated()
    assert h.get_size() == 4 * MIB and h.can_fua()
    data = pattern(flags, 100_000)
    h.pwrite(data, 1, FUA)
    assert h.pread(100_000, 1) == data
    assert refused(h.pread, 1, 4 * MIB) == "EINVAL"
    h.shutdown()
