# Code of the caller, before there is a connection.

exec(code)
