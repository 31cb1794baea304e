"""Sockets: connections from clients and to upstreams. Nothing in this package knows Xet."""
