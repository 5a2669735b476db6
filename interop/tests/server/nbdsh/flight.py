# Many requests at once, whose replies are not confused.

COUNT = 200
LEN = 20_000

h.connect_uri(uri)
datas = [pattern(number, LEN) for number in range(COUNT)]
ended = []


def all_at_once(start):
    """Starts a request for each number, waits for all, and checks that each ended once."""
    ended.clear()

    def note(number):
        def completion(error):
            assert error.value == 0
            ended.append(number)
            return 1

        return completion

    for number in range(COUNT):
        start(number, note(number))
    most = h.aio_in_flight()
    while h.aio_in_flight() > 0:
        h.poll(-1)
    assert sorted(ended) == list(range(COUNT))
    return most


buffers = [nbd.Buffer.from_bytearray(data) for data in map(bytearray, datas)]
most = all_at_once(lambda n, done: h.aio_pwrite(buffers[n], n * LEN, done, FUA if n % 3 else 0))
assert most >= 64, most

# Writes, reads and others of different places, all in flight together.
reads = [nbd.Buffer(LEN) for _ in range(COUNT)]


def start(number, done):
    kind = number % 4
    if kind == 0:
        h.aio_zero(LEN, number * LEN, done)
    elif kind == 1:
        h.aio_flush(done)
    elif kind == 2:
        h.aio_cache(LEN, number * LEN, done)
    else:
        h.aio_pread(reads[number], number * LEN, done)


most = all_at_once(start)
assert most >= 64, most
for number in range(3, COUNT, 4):
    assert reads[number].to_bytearray() == datas[number]
for number in range(COUNT):
    expected = bytes(LEN) if number % 4 == 0 else datas[number]
    assert h.pread(LEN, number * LEN) == expected, number
h.shutdown()
