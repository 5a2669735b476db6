# Every command with each of its flags. The caller compares the calls that reached the storage.

h.connect_uri(uri)
size = h.get_size()
assert size == 4 * MIB

first, second = pattern(1, 64 * KIB), pattern(2, 1000)
h.pwrite(first, 0)
h.pwrite(second, 123_457, FUA)
assert h.pread(64 * KIB, 0) == first
assert h.pread(1000, 123_457) == second
assert h.pread(1002, 123_456) == b"\0" + second + b"\0"

h.flush()
h.cache(MIB, 0)

h.zero(4096, 0)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
h.zero(4096, 8192, FUA)
h.zero(4096, 12_288, nbd.CMD_FLAG_FAST_ZERO)
h.zero(4096, 16_384, nbd.CMD_FLAG_NO_HOLE | FUA | nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(20_480, 0) == bytes(20_480)
assert h.pread(45_056, 20_480) == first[20_480:]

# Too slow to be called fast, and then done all the same.
assert refused(h.zero, 2 * MIB, 2 * MIB, nbd.CMD_FLAG_FAST_ZERO) in ("ENOTSUP", "EOPNOTSUPP")
h.zero(2 * MIB, 2 * MIB)

h.trim(32 * KIB, 32 * KIB)
h.trim(32 * KIB, 96 * KIB, FUA)
assert h.pread(32 * KIB, 32 * KIB) == bytes(32 * KIB)
assert h.pread(1000, 123_457) == bytes(1000)

# The last byte there is.
h.pwrite(b"!", size - 1)
assert h.pread(1, size - 1) == b"!"
h.shutdown()
