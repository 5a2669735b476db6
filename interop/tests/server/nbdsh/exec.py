# Whatever the caller wants, before there is a connection.

exec(code)
