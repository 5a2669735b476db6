# Whatever the caller wants of an export.

h.add_meta_context("base:allocation")
h.connect_uri(uri)
exec(code)
h.shutdown()
