"""multipart/byteranges, taken apart."""


def read_parts(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """Give (Content-Range, bytes) of every part."""
    kind, _, boundary = content_type.partition("; boundary=")
    assert kind == "multipart/byteranges"
    first, *parts, last = (b"\r\n" + body).split(f"\r\n--{boundary}".encode())
    assert (first, last) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, _, data = part.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:])
        assert fields["Content-Type"]
        found.append((fields["Content-Range"], data))
    return found
