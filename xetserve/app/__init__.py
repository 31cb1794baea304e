"""What our clients see: Request in, Response out; no sockets."""
