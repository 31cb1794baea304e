"""The HTTP application: a Request in, a Response out; no sockets."""
