# The client's three ways with TLS, where no URI chooses one. The server may not have it, offer it,
# or require it.

for way in (nbd.TLS_ALLOW, nbd.TLS_DISABLE, nbd.TLS_REQUIRE):
    h = fresh()
    h.set_tls(way)
    h.set_tls_certificates(dir)
    h.set_export_name("disk")
    try:
        h.connect_tcp("127.0.0.1", port)
    except nbd.Error:
        assert way != nbd.TLS_ALLOW
        # One of the two requires TLS, and the other refuses it.
        assert offered == (way == nbd.TLS_DISABLE)
        continue
    assert h.get_tls_negotiated() == (offered and way != nbd.TLS_DISABLE)
    h.pwrite(b"in the clear or not", 3)
    assert h.pread(19, 3) == b"in the clear or not"
    h.shutdown()
