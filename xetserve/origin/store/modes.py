"""Which files are large, with an LFS pointer in the tree, and which are git blobs."""

import codecs
from pathlib import PurePosixPath
from typing import Final

SAMPLE_SIZE: Final = 512  # bytes of a file that a client sends before it uploads the file
MAX_PLAIN_SIZE: Final = 10 * 1024 * 1024  # bytes; the Hub takes no larger git blobs

# File names that the Hub's default .gitattributes sends to LFS, whatever the content.
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
    """Return whether a file is large, from its name, size and first bytes.

    Args:
        sample: the first SAMPLE_SIZE bytes, fewer for a smaller file.
    """
    if size == 0:
        return False  # clients always upload empty files as git blobs
    if size > MAX_PLAIN_SIZE or PurePosixPath(path).suffix.lower() in _LARGE_SUFFIXES:
        return True
    return not _is_text(sample)


def _is_text(sample: bytes) -> bool:
    if b"\0" in sample:
        return False
    try:
        # The sample may end within a character.
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return False
    return True
