# Writes, one after the other, until the server stops.

h.connect_uri(uri)
written = 0
try:
    while True:
        h.pwrite((written + 1).to_bytes(8, "big"), 8 * written)
        written += 1
except nbd.Error as error:
    # Either it sent ESHUTDOWN, or it had closed the connection while no request was in flight.
    assert error.errno in ("ESHUTDOWN", "ENOTCONN", "EINVAL"), error
    assert error.errno == "ESHUTDOWN" or h.aio_is_closed() or h.aio_is_dead(), error
print(written)
