# Everything at odd places, each step checked against a copy.

import random

if structured is not None:
    h.set_request_structured_replies(structured)
h.connect_uri(uri)
size = h.get_size()
dice = random.Random(20_261_125)
copy = bytearray(h.pread(size, 0))
for step in range(400):
    offset = dice.randrange(size)
    count = 1 + dice.randrange(min(size - offset, 300_000))
    end = offset + count
    fua = FUA if h.can_fua() and step % 4 == 0 else 0
    kind = dice.randrange(8)
    if kind < 3:
        copy[offset:end] = pattern(step, count)
        h.pwrite(copy[offset:end], offset, fua)
    elif kind == 3:
        h.zero(count, offset, fua | dice.choice((0, nbd.CMD_FLAG_NO_HOLE)))
        copy[offset:end] = bytes(count)
    elif kind == 4:
        # It may have any contents now, but keeps them.
        h.trim(count, offset, fua)
        copy[offset:end] = h.pread(count, offset)
    elif kind == 5:
        h.cache(count, offset)
    elif kind == 6:
        h.flush()
    assert h.pread(count, offset) == copy[offset:end], step
assert h.pread(size, 0) == copy
h.flush()
h.shutdown()
