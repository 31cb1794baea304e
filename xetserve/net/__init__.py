"""Sockets, both directions; nothing here knows Xet."""
