"""The files that the end-to-end tests upload and download; the same bytes on every run."""

import random
from array import array
from pathlib import Path

MIB = 1024 * 1024


def make_dataset(folder: Path) -> list[str]:
    """Write the files into a folder; gives their paths in the repository."""
    source = random.Random(2026)
    floats = array("f", (source.gauss(0, 0.02) for _ in range(400_000))).tobytes()
    upper_halves = b"".join(floats[at : at + 2] for at in range(2, len(floats), 4))  # bfloat16
    noise = source.randbytes(3 * MIB)
    words = ["the", "xorb", "holds", "chunks", "and", "a", "term", "names", "some", "of", "them"]
    text = " ".join(source.choices(words, k=600_000)).encode()
    big = source.randbytes(40 * MIB) + floats * 10 + source.randbytes(20 * MIB)
    edited = big[: 9 * MIB] + b"inserted" + big[9 * MIB : 50 * MIB] + text + big[55 * MIB :]
    pattern = source.randbytes(900_000)
    files = {
        "model/tensors f32.safetensors": floats * 4,
        "model/tensors-bf16.safetensors": upper_halves * 6,
        "random.bin": noise,
        "text/corpus.bin": text,
        "repeats.bin": (pattern + floats[:300_000]) * 6 + pattern[5:],
        "big.bin": big,
        "big-edited.bin": edited,
        "empty.bin": b"",
        "one-byte.bin": b"x",
        "five-kilobytes.bin": noise[:5120],
        "odd/name with spaces.bin": noise[: 200_000 + 1],
        "odd/100% + more.bin": noise[: 200_000 + 2],
        "odd/größe-大きさ.bin": noise[: 200_000 + 3],
        "a/b/c/d/e/deep.bin": noise[: 200_000 + 4],
        # For damage: chunks that no other file has, one file for each scheme.
        "damage/raw.bin": source.randbytes(MIB),
        "damage/lz4.bin": " ".join(source.choices(words[::-1], k=250_000)).encode(),
        "damage/bg4.bin": array("f", (source.gauss(0, 3) for _ in range(250_000))).tobytes(),
        "large-noise.bin": source.randbytes(5 * MIB),
        "config.json": b'{"model_type": "test"}\n',
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(files)
