# Exports that can do less. The scheme is that of strict.py.

for name, refusals in [
    (
        "read-only",
        [
            ("EPERM", "pwrite", bytes(512), 0),
            ("EPERM", "pwrite", bytes(512), 0, FUA),
            ("EPERM", "zero", 512, 0),
            ("EPERM", "trim", 512, 0),
        ],
    ),
    (
        "bare",
        [
            ("EPERM", "pwrite", bytes(512), 0),
            ("EPERM", "zero", 512, 0),
            ("EPERM", "trim", 512, 0),
            ("EINVAL", "cache", 512, 0),
            ("EINVAL", "flush"),
        ],
    ),
    (
        "of blocks",
        [
            ("EINVAL", "pread", 512, 0),
            ("EINVAL", "pread", 4096, 512),
            ("EINVAL", "pwrite", bytes(512), 4096),
            ("EINVAL", "zero", 4097, 0),
            ("EINVAL", "trim", 4096, 1),
            ("EINVAL", "cache", 1, 0),
            # Longer than announced.
            ("EOVERFLOW", "pread", 128 * KIB, 0),
            ("EOVERFLOW", "pread", MIB, 0),
        ],
    ),
    ("small", [("ENOSPC", "pwrite", b"x" * 512, 64 * KIB)]),
]:
    for asks_for_sizes in (True, False):
        h = fresh()
        h.set_request_block_size(asks_for_sizes)
        export = uri.replace("/?", "/%s?" % urllib.parse.quote(name))
        if name == "of blocks" and not asks_for_sizes:
            # A client that does not know the sizes would fail with half of its requests.
            assert refused(h.connect_uri, export) == "EINVAL"
            continue
        h.connect_uri(export)
        if name == "small":
            h.pwrite(b"y" * 512, 0)
        before = h.pread(4096, 0)
        for expected, method, *args in refusals:
            found = refused(getattr(h, method), *args)
            assert found == expected, (name, method, args[1:], found, expected)
            assert h.pread(4096, 0) == before
        h.shutdown()
