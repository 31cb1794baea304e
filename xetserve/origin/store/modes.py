"""Which files are large, kept as LFS pointers in the tree, and which are plain git blobs."""

import codecs
from pathlib import PurePosixPath
from typing import Final

SAMPLE_SIZE: Final = 512  # bytes that a client shows of a file before it uploads it
MAX_PLAIN_SIZE: Final = 10 * 1024 * 1024  # bytes; the Hub takes no larger plain files

# What the Hub's default .gitattributes sends to LFS, whatever the content.
_LARGE_SUFFIXES: Final = frozenset(
    [
        ".7z",
        ".arrow",
        ".avro",
        ".bin",
        ".bz2",
        ".ckpt",
        ".ftz",
        ".gguf",
        ".gz",
        ".h5",
        ".joblib",
        ".lz4",
        ".mlmodel",
        ".model",
        ".msgpack",
        ".npy",
        ".npz",
        ".onnx",
        ".ot",
        ".parquet",
        ".pb",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
        ".rar",
        ".safetensors",
        ".tar",
        ".tflite",
        ".tgz",
        ".wasm",
        ".xz",
        ".zip",
        ".zst",
    ]
)


def is_large_file(path: str, size: int, sample: bytes) -> bool:
    """Decide from a file's name, size and first bytes.

    Args:
        sample: the first SAMPLE_SIZE bytes, fewer for a smaller file.
    """
    if size == 0:
        return False  # clients send empty files as plain ones, whatever they are told
    if size > MAX_PLAIN_SIZE or PurePosixPath(path).suffix.lower() in _LARGE_SUFFIXES:
        return True
    return not _is_text(sample)


def _is_text(sample: bytes) -> bool:
    if b"\0" in sample:
        return False
    try:
        # A character may be cut at the end of the sample: that is not held against it.
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return True
