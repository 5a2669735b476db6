# Code of the caller, on an export.

h.add_meta_context("base:allocation")
h.connect_uri(uri)
exec(code)
h.shutdown()
