"""The types of objects that hold bytes: as arguments they are interchangeable."""

Buffer = bytes | bytearray | memoryview
