"""The types that functions accept for bytes."""

Buffer = bytes | bytearray | memoryview
