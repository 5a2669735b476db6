# Options that libnbd has from 1.16 on, one by one and in the order that the client wants.

missing = [
    name
    for name in (
        "opt_starttls",
        "opt_structured_reply",
        "opt_set_meta_context",
        "opt_set_meta_context_queries",
        "opt_list_meta_context_queries",
    )
    if not hasattr(h, name)
]
if missing:
    print("libnbd %s lacks %s" % (h.get_version(), ", ".join(missing)))
else:
    h.set_opt_mode(True)
    h.set_request_meta_context(False)
    h.set_request_structured_replies(False)
    h.set_tls_certificates(certificates)
    h.connect_tcp("localhost", port)

    names = []
    h.set_export_name("disk")
    assert h.opt_starttls()
    assert h.get_tls_negotiated()
    # Once is enough, and asking twice does not end the connection.
    assert not h.opt_starttls()
    assert h.opt_list_meta_context_queries([], names.append) == 2
    assert h.opt_list_meta_context_queries(["x-spy:", "base:allocation"], names.append) == 2
    assert sorted(names) == 2 * ["base:allocation"] + 2 * ["x-spy:parity"]

    # No context without structured replies.
    assert h.opt_structured_reply()
    names.clear()
    assert h.opt_set_meta_context_queries(["x-spy:parity", "no:such"], names.append) == 1
    assert names == ["x-spy:parity"] and h.can_meta_context("x-spy:parity")
    # Choosing anew replaces the choice.
    names.clear()
    h.add_meta_context("base:allocation")
    assert h.opt_set_meta_context(names.append) == 1
    assert names == ["base:allocation"]
    h.opt_go()
    assert extents(h, MIB, 0) == {"base:allocation": [(MIB, 3)]}
    h.pwrite(b"secret", 5)
    assert h.pread(6, 5) == b"secret"
    h.shutdown()
