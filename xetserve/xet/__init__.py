"""The Xet format: bytes in, values out. No sockets, files, clocks or logging."""
