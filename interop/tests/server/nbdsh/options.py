# Negotiation: all options before an export is entered, in any order.

h.set_opt_mode(True)
h.set_full_info(True)
h.connect_uri(uri)
assert h.aio_is_negotiating()
assert h.get_protocol() == "newstyle-fixed"


def listed():
    exports = []
    count = h.opt_list(lambda name, description: exports.append((name, description)))
    assert count == len(exports)
    return exports


def contexts():
    names = []
    count = h.opt_list_meta_context(names.append)
    assert count == len(names)
    return sorted(names)


exports = [("disk", "the disk itself"), ("other", "")]
assert listed() == exports

# The information about an export without entering it.
h.set_export_name("disk")
h.opt_info()
assert h.get_size() == 4 * MIB
assert h.get_export_description() == "the disk itself"
assert h.can_fua() and not h.is_read_only()
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB

# Another name, and another one that is not there.
h.set_export_name("other")
h.opt_info()
assert h.get_size() == MIB and h.is_read_only()
h.set_export_name("none")
assert refused(h.opt_info) == "ENOENT"
assert refused(h.opt_go) == "ENOENT"
assert listed() == exports

# The default export announces its name.
h.set_export_name("")
h.opt_info()
assert h.get_canonical_export_name() == "disk"

# Contexts: all there are, those of a namespace, one, and none.
h.set_export_name("disk")
assert contexts() == ["base:allocation", "x-spy:parity"]
for query, expected in [
    ("base:", ["base:allocation"]),
    ("x-spy:", ["x-spy:parity"]),
    ("x-spy:parity", ["x-spy:parity"]),
    ("base:other", []),
    ("no:such", []),
]:
    h.clear_meta_contexts()
    h.add_meta_context(query)
    assert contexts() == expected, query

# After all that an export is entered as ever.
h.clear_meta_contexts()
h.add_meta_context("x-spy:parity")
h.opt_go()
assert h.aio_is_ready()
assert h.can_meta_context("x-spy:parity")
assert extents(h, 2 * MIB, 0) == {"x-spy:parity": [(MIB, 0), (MIB, 1)]}
h.pwrite(b"x" * 512, 0)
assert h.pread(512, 0) == b"x" * 512
h.shutdown()

# Or the client aborts.
h = fresh()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()
assert h.aio_is_closed()
