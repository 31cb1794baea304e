"""HTTP/1.1: what messages mean. No sockets, files, clocks or logging."""
