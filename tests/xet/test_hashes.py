import json
import struct
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.xet.hashes import (
    CHUNK_KEY,
    HASH_SIZE,
    MAX_GROUP,
    NODE_KEY,
    RANGE_KEY,
    ZERO_HASH,
    MerkleTree,
    format_hash,
    hash_chunk,
    hash_node,
    hash_range,
    is_group_end,
    parse_hash,
)

Leaf = tuple[bytes, int]

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/hashes.json").read_text())


def cases(group: str) -> list[Any]:
    found: list[Any] = VECTORS[group]["cases"]
    return found


def make_tree(leaves: list[Leaf]) -> MerkleTree:
    tree = MerkleTree()
    for raw, size in leaves:
        tree.add(raw, size)
    return tree


def reference_levels(leaves: list[Leaf]) -> list[list[list[Leaf]]]:
    """The tree level by level, as the draft words it; a level is a list of groups."""
    level = leaves
    levels = []
    while len(level) > 1:
        groups = []
        rest = level
        while rest:
            size = min(9, len(rest))
            for index in range(2, size):
                if int.from_bytes(rest[index][0][24:], "little") % 4 == 0:
                    size = index + 1
                    break
            groups.append(rest[:size])
            rest = rest[size:]
        levels.append(groups)
        level = [reference_node(group) for group in groups]
    return levels


def reference_node(group: list[Leaf]) -> Leaf:
    lines = [
        "{:016x}{:016x}{:016x}{:016x} : {}\n".format(*struct.unpack("<4Q", raw), size)
        for raw, size in group
    ]
    raw = blake3("".join(lines).encode(), key=NODE_KEY).digest()
    return raw, sum(size for _, size in group)


def reference_root(leaves: list[Leaf]) -> bytes:
    if len(leaves) < 2:
        return leaves[0][0] if leaves else bytes(32)
    return reference_node(reference_levels(leaves)[-1][0])[0]


def synthetic_leaves(count: int) -> list[Leaf]:
    return [(hash_chunk(str(i).encode()), i + 1) for i in range(count)]


def forced_leaves(count: int, remainder: int) -> list[Leaf]:
    return [(struct.pack("<4Q", i, 0, 0, 4 * i + remainder), 1000 + i) for i in range(count)]


def chunk_input(case: dict[str, Any]) -> bytes:
    text = case["input"]
    if case["input_kind"] == "ascii":
        return bytes(text, "ascii")
    if case["input_kind"] == "hex":
        return bytes.fromhex(text)
    byte, count = text.split("*")
    return bytes.fromhex(byte) * int(count)


# The string form


def test_keys_are_the_published_ones() -> None:
    keys = VECTORS["keys_raw_hex"]
    assert CHUNK_KEY.hex() == keys["chunk_data_key"]
    assert NODE_KEY.hex() == keys["internal_node_key"]
    assert RANGE_KEY.hex() == keys["verification_key"]
    assert ZERO_HASH.hex() == keys["file_salt_key"]


@pytest.mark.parametrize("case", cases("hash_string"), ids=lambda case: case["string"][:16])
def test_string_form_reverses_each_group_of_eight_bytes(case: dict[str, str]) -> None:
    raw = bytes.fromhex(case["raw_hex"])
    assert format_hash(raw) == case["string"]
    assert parse_hash(case["string"]) == raw


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("a" * 63, id="63 digits"),
        pytest.param("a" * 65, id="65 digits"),
        pytest.param("A" * 64, id="upper case"),
        pytest.param("a" * 63 + "F", id="one upper-case digit"),
        pytest.param("*" * 64, id="redacted"),
        pytest.param("g" * 64, id="not hex"),
        pytest.param("a" * 64 + "\n", id="newline at the end"),
        pytest.param(" " + "a" * 63, id="blank at the start"),
        pytest.param("0x" + "a" * 62, id="hex prefix"),
        pytest.param("aa " * 21 + "a", id="blanks that bytes.fromhex would skip"),
        pytest.param("\u0661" * 64, id="digits of another script"),
        pytest.param("\uff11" * 64, id="full-width digits"),
        pytest.param("\ud800" * 64, id="lone surrogates"),
        pytest.param("a" * 63 + "\0", id="NUL"),
    ],
)
def test_parse_hash_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        parse_hash(text)


@settings(deadline=None)
@given(
    st.text()
    | st.text("0123456789abcdefABCDEF*", min_size=63, max_size=65)
    | st.from_regex(r"\A[0-9a-f]{64}\n?\Z")
)
def test_parse_hash_gives_a_hash_or_value_error(text: str) -> None:
    try:
        raw = parse_hash(text)
    except ValueError:
        return
    assert len(raw) == HASH_SIZE
    assert format_hash(raw) == text


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_format_then_parse_is_the_same_hash(raw: bytes) -> None:
    assert parse_hash(format_hash(raw)) == raw
    assert format_hash(raw) == "{:016x}{:016x}{:016x}{:016x}".format(*struct.unpack("<4Q", raw))


# Chunks, nodes and ranges


@pytest.mark.parametrize("case", cases("chunk_hash"), ids=lambda case: case["input"][:12])
def test_chunk_hash(case: dict[str, Any]) -> None:
    data = chunk_input(case)
    assert len(data) == case["length"]
    for buffer in (data, bytearray(data), memoryview(data)):
        assert hash_chunk(buffer).hex() == case["hash_raw_hex"]
    assert format_hash(hash_chunk(data)) == case["hash"]


@pytest.mark.parametrize("case", cases("internal_node"), ids=lambda case: case["hash"][:8])
def test_node_hash(case: dict[str, Any]) -> None:
    children = [(parse_hash(text), size) for text, size in case["children"]]
    assert format_hash(hash_node(children)) == case["hash"]
    assert hash_node(children) == blake3(case["text"].encode(), key=NODE_KEY).digest()
    tree = make_tree(children)
    assert format_hash(tree.xorb_hash()) == case["hash"]
    assert tree.size == case["size"]


@pytest.mark.parametrize("case", cases("verification_hash"), ids=lambda case: case["hash"][:8])
def test_range_hash(case: dict[str, Any]) -> None:
    chunk_hashes = [parse_hash(text) for text in case["chunk_hashes"]]
    assert format_hash(hash_range(chunk_hashes)) == case["hash"]


@pytest.mark.parametrize("case", cases("global_dedup_eligible"), ids=lambda case: case["hash"][-4:])
def test_group_ends_look_at_the_number_that_dedup_looks_at(case: dict[str, Any]) -> None:
    # Both rules take the last little-endian u64, the last 16 digits of the string form: modulo
    # 1024 for dedup, modulo 4 here.
    last = int(case["hash"][-16:], 16)
    assert case["eligible_when_not_first_chunk"] == (last % 1024 == 0)
    assert is_group_end(parse_hash(case["hash"])) == (last % 4 == 0)


# Trees


@pytest.mark.parametrize("case", cases("merkle_synthetic"), ids=lambda case: f"{case['n']} leaves")
def test_roots_of_synthetic_leaves(case: dict[str, Any]) -> None:
    leaves = synthetic_leaves(case["n"])
    tree = make_tree(leaves)
    assert format_hash(tree.xorb_hash()) == case["xorb_hash"]
    assert format_hash(tree.file_hash()) == case["file_hash"]
    assert (tree.num_chunks, tree.size) == (case["n"], case["total_size"])

    levels = reference_levels(leaves)
    assert [case["n"], *map(len, levels)] == case["level_counts"]
    if "group_sizes_per_level" in case:
        sizes = [[len(group) for group in groups] for groups in levels]
        assert sizes == case["group_sizes_per_level"]


@pytest.mark.parametrize(
    "case", cases("merkle_forced_groups"), ids=lambda case: f"{case['n']} leaves, {case['m']} mod 4"
)
def test_roots_of_forced_groups(case: dict[str, Any]) -> None:
    leaves = forced_leaves(case["n"], case["m"])
    tree = make_tree(leaves)
    assert format_hash(tree.xorb_hash()) == case["xorb_hash"]
    assert format_hash(tree.file_hash()) == case["file_hash"]
    assert [len(group) for group in reference_levels(leaves)[0]] == case["leaf_group_sizes"]


@pytest.mark.parametrize(
    "case", cases("merkle_official_cases"), ids=lambda case: case["file_hash"][:8]
)
def test_roots_of_the_official_unit_tests(case: dict[str, Any]) -> None:
    tree = make_tree([(parse_hash(text), size) for text, size in case["entries"]])
    assert format_hash(tree.xorb_hash()) == case["xorb_hash"]
    assert format_hash(tree.file_hash()) == case["file_hash"]
    for salted in case["file_hash_with_salt"]:
        salt = parse_hash(salted["salt"])
        root = blake3(tree.xorb_hash(), key=salt).digest() if case["entries"] else ZERO_HASH
        assert format_hash(root) == salted["hash"]


@pytest.mark.parametrize("case", cases("zero_files"), ids=lambda case: f"{case['size']} zeros")
def test_roots_of_zero_files(case: dict[str, Any]) -> None:
    tree = MerkleTree()
    for start in range(0, case["size"], 131072):
        size = min(131072, case["size"] - start)
        tree.add(hash_chunk(bytes(size)), size)
    assert tree.num_chunks == case["n_chunks"]
    assert format_hash(tree.xorb_hash()) == case["xorb_hash_if_one_xorb"]
    assert format_hash(tree.file_hash()) == case["file_hash"]


def test_one_chunk_is_its_own_root() -> None:
    raw = hash_chunk(b"Hello World!")
    tree = make_tree([(raw, 12)])
    assert tree.xorb_hash() == raw
    assert tree.file_hash() == blake3(raw, key=bytes(32)).digest()


# Hashes whose last number is small, so that group ends are as frequent as their absence.
leaf_lists = st.lists(
    st.tuples(
        st.builds(
            lambda head, last: head + bytes([last]) + bytes(7),
            st.binary(min_size=24, max_size=24),
            st.integers(0, 7),
        ),
        st.integers(0, 131072),
    ),
    max_size=120,
)


@settings(deadline=None)
@given(leaf_lists)
def test_streamed_root_equals_the_level_by_level_one(leaves: list[Leaf]) -> None:
    tree = make_tree(leaves)
    assert tree.xorb_hash() == reference_root(leaves)
    assert tree.size == sum(size for _, size in leaves)


@settings(deadline=None)
@given(st.integers(0, 1500), st.binary(max_size=4))
def test_streamed_root_equals_the_level_by_level_one_in_deep_trees(count: int, seed: bytes) -> None:
    leaves = [(hash_chunk(b"%d " % i + seed), i) for i in range(count)]
    assert make_tree(leaves).xorb_hash() == reference_root(leaves)


@settings(deadline=None)
@given(leaf_lists.filter(lambda leaves: len(leaves) < 40))
def test_asking_for_the_root_midway_changes_nothing(leaves: list[Leaf]) -> None:
    tree = MerkleTree()
    assert tree.xorb_hash() == ZERO_HASH
    for count, (raw, size) in enumerate(leaves, 1):
        tree.add(raw, size)
        assert tree.xorb_hash() == reference_root(leaves[:count])
        assert tree.xorb_hash() == tree.xorb_hash()


@settings(deadline=None)
@given(leaf_lists.filter(lambda leaves: len(leaves) > 1), st.data())
def test_any_other_leaf_gives_another_root(leaves: list[Leaf], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    raw, size = leaves[index]
    root = make_tree(leaves).xorb_hash()
    for other in ((raw, size + 1), (bytes([raw[0] ^ 1]) + raw[1:], size)):
        assert make_tree([*leaves[:index], other, *leaves[index + 1 :]]).xorb_hash() != root
    assert make_tree(leaves[:-1]).xorb_hash() != root


@pytest.mark.parametrize("remainder", [0, 1], ids=["every leaf ends", "no leaf ends"])
def test_a_level_holds_at_most_eight_entries(remainder: int) -> None:
    tree = MerkleTree()
    for raw, size in forced_leaves(20_000, remainder):
        tree.add(raw, size)
        assert max(map(len, tree._levels)) < MAX_GROUP
    assert len(tree._levels) <= 10  # groups have three entries or more: log3 of 20,000 and one
