"""The import table of the house: which room may know which.

Imports point down. Every import statement of every module counts, inside functions and behind
TYPE_CHECKING too.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xetserve"

# Rooms, and the rooms that each may import besides itself, base, errors and metrics.
ROOMS: dict[str, set[str]] = {
    "base": set(),
    "metrics": set(),
    "xet": set(),
    "http": set(),
    "net": {"http"},
    "upstream": {"net", "http", "xet"},
    "pipeline": {"upstream", "xet"},
    "cachetools": {"pipeline", "upstream", "xet"},
    "app": {"pipeline", "upstream", "http", "xet"},
    "origin": {"http", "xet"},
    "ops": {"net", "http"},
    "deploy": set(),  # it takes a text for the configuration, and asks a server as anybody does
    "config": set(),
    # The roof, in as many parts as there are commands. It knows everybody.
    "commands": {"xet", "http", "net", "upstream", "pipeline", "cachetools", "app", "origin",
                 "ops", "deploy", "config"},
}  # fmt: skip
SHARED = {"base", "errors", "metrics"}

# Floors inside a room: folders, and single modules that lie on a floor of their own. Each may
# import those named behind it; "roof" is every other module of the room, and may import all.
INNER: dict[str, dict[str, set[str]]] = {
    "pipeline": {
        "provenance": set(),
        "proven_store": set(),
        "tally": set(),
        "flow": set(),
        "plan": {"flow"},
        "cache": {"provenance"},
        "verify": {"provenance", "cache"},
        "fetch": {"tally", "provenance", "flow", "plan", "cache", "verify"},
        "blocks": {"fetch", "flow", "tally"},
        "windows": {"fetch", "plan"},
        "window_reader": {"blocks", "windows", "fetch", "tally", "plan", "verify"},
        "reader": {"blocks", "windows", "window_reader", "fetch", "flow", "plan", "verify"},
        "packed_reader": {
            "blocks",
            "window_reader",
            "proven_store",
            "fetch",
            "flow",
            "plan",
            "verify",
        },
        "prover": {"reader", "flow", "verify"},
        "engine": {
            "blocks",
            "reader",
            "prover",
            "packed_reader",
            "proven_store",
            "fetch",
            "tally",
            "flow",
            "verify",
        },
    },
    "app": {
        "auth": {"errors"},
        "errors": set(),
        "paths": set(),
        "route_table": {"paths"},
        "text_compression": set(),
        "status": {"auth", "errors", "paths", "route_table"},
        "middleware": {"auth", "errors", "paths", "route_table", "status"},
        "download": {"auth", "errors", "paths", "route_table"},
        "native": {"auth", "errors", "paths", "route_table", "download"},
        "hub": {"auth", "errors", "paths", "route_table", "download", "native"},
    },
}

# Modules beside the rooms. The roof knows everybody; rooms take plain values, not the config.
PACKAGE_MODULES: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "cli": {"errors", "config", "commands", "ops"},
    "__main__": {"cli"},
}

THIRD_PARTY = {"uvloop", "h11", "blake3", "zstandard", "aiofiles", "lz4"}

SOCKETS = {"socket", "socketserver", "ssl", "select", "selectors", "http.client", "http.server",
           "urllib.request", "ftplib", "smtplib", "xmlrpc"}  # fmt: skip
FILES = {"os", "pathlib", "shutil", "tempfile", "glob", "fileinput", "mmap", "fcntl", "sqlite3",
         "dbm", "shelve"}  # fmt: skip
CLOCKS = {"time", "sched", "timeit"}
PROCESSES = {"asyncio", "threading", "_thread", "concurrent", "multiprocessing", "subprocess",
             "signal", "queue"}  # fmt: skip
IMPURE = SOCKETS | FILES | CLOCKS | PROCESSES | {"logging", "uvloop", "aiofiles"}

FORBIDDEN: dict[str, set[str]] = {
    "xet": IMPURE | {"h11"},
    "http": IMPURE,
    "pipeline": {"h11", "http"},
    "app": SOCKETS | {"h11", "uvloop"},
    "origin": SOCKETS | {"h11", "uvloop"},
}
PURE = {"xet", "http"}
# Modules without asyncio, clocks, files and sockets in rooms that have them.
PURE_MODULES = {
    "xetserve.app.paths",
    "xetserve.app.route_table",
    "xetserve.base.json_text",
    "xetserve.base.lru_dict",
    "xetserve.base.request_id",
    "xetserve.pipeline.cache.chunk_hashes",
    "xetserve.pipeline.cache.coverage",
    "xetserve.pipeline.cache.entry",
    "xetserve.pipeline.plan.chunk_reuse",
    "xetserve.pipeline.plan.window_plan",
    "xetserve.pipeline.provenance",
    "xetserve.pipeline.verify.ledger",
    "xetserve.pipeline.verify.ledger_file",
}
HIDING = {"importlib", "imp", "pkgutil", "runpy"}  # they import by names made at run time


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place_of(module: str) -> str:
    """The room of a module, or its own name where it stands beside the rooms."""
    _, _, below = module.partition(".")
    return below.partition(".")[0] or "__init__"


def floor_of(module: str) -> str:
    """The floor of a module inside its room; "" where the room has none, "roof" above all of
    them.
    """
    room, _, below = module.removeprefix("xetserve.").partition(".")
    if room not in INNER:
        return ""
    name = below.partition(".")[0]
    return name if name in INNER[room] else "roof"


def find_inner_offence(module: str, imported: str) -> str | None:
    """Say how an import goes up, or sideways, inside a room."""
    room = place_of(module)
    floor, other = floor_of(module), floor_of(imported)
    if room != place_of(imported) or floor in ("", "roof", other):
        return None
    if imported == f"xetserve.{room}" or other in INNER[room][floor]:
        return None
    return f"{module}: {room}.{floor} may not know {room}.{other}"


def iter_imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, dotted; a leading dot marks a relative import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            # "from xetserve import net" and "from http import client" name modules; dunders do not.
            for alias in node.names:
                yield base if alias.name.startswith("__") else f"{base}.{alias.name}"


def is_within(imported: str, names: set[str]) -> bool:
    return any(imported == name or imported.startswith(f"{name}.") for name in names)


def find_offences(source: str, module: str) -> list[str]:
    """Say what the source of a module, if it were that module, imports against the table."""
    tree = ast.parse(source)
    place = place_of(module)
    if place not in ROOMS and place not in PACKAGE_MODULES:
        return [f"{module} has no place in the table"]
    allowed = {place} | (ROOMS[place] | SHARED if place in ROOMS else PACKAGE_MODULES[place])
    offences = []
    for imported in sorted(set(iter_imports(tree))):
        top = imported.partition(".")[0]
        if not top:
            offences.append(f"{module}: relative import {imported}")
        elif top == "xetserve":
            if imported == "xetserve":
                continue  # a dunder of the package: its version
            if place_of(imported) not in allowed:
                offences.append(f"{module}: {place} may not know {place_of(imported)}")
            elif inner := find_inner_offence(module, imported):
                offences.append(inner)
        elif module in PURE_MODULES and is_within(imported, IMPURE):
            offences.append(f"{module}: it is pure, and may not import {imported}")
        elif is_within(imported, HIDING):
            offences.append(f"{module}: {imported} hides what it imports")
        elif is_within(imported, FORBIDDEN.get(place, set())):
            offences.append(f"{module}: {place} may not import {imported}")
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY:
            offences.append(f"{module}: {top} is not a dependency")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name == "xetserve" for alias in node.names):
            offences.append(f"{module}: import the module, not all of xetserve")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "__import__":
                offences.append(f"{module}: __import__ hides what it imports")
            if node.func.id == "open" and place in PURE:
                offences.append(f"{module}: {place} may not open files")
    return offences


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    assert find_offences(path.read_text(encoding="utf-8"), module_name(path)) == []


def test_every_room_is_looked_into() -> None:
    places = {place_of(module_name(path)) for path in SOURCES}
    assert places >= {*ROOMS, "__init__", "__main__", "errors"}
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == {*ROOMS}


def test_the_floors_of_a_room_have_no_circle() -> None:
    for floors in INNER.values():
        assert set(TopologicalSorter(floors).static_order()) == {*floors}


def test_the_pure_modules_are_there() -> None:
    assert {module_name(path) for path in SOURCES} >= PURE_MODULES


def test_the_table_has_no_circle() -> None:
    order = list(TopologicalSorter(ROOMS).static_order())
    assert set(order) - {*PACKAGE_MODULES} == {*ROOMS}
    assert all(order.index(below) < order.index(room) for room in ROOMS for below in ROOMS[room])


def test_the_dependencies_are_the_declared_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\s<>=!~;\[]", line)[0] for line in project["dependencies"]}
    assert declared == THIRD_PARTY


def find_shared_tests(source: str) -> list[str]:
    """List what a source imports from test modules: those are for pytest alone."""
    return [
        imported
        for imported in iter_imports(ast.parse(source))
        if imported.startswith("tests.") and ".test_" in imported
    ]


def test_no_test_module_is_imported() -> None:
    """Helpers that several test modules use have a module of their own, or are fixtures."""
    sources = [path for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    found = {module_name(path): find_shared_tests(path.read_text("utf-8")) for path in sources}
    assert {module: imported for module, imported in found.items() if imported} == {}


# The tests can fail


def test_an_imported_test_module_is_found() -> None:
    source = "from tests.e2e.test_tls import answer_of\nfrom tests.e2e import raw, test_tls"
    assert find_shared_tests(source) == ["tests.e2e.test_tls.answer_of", "tests.e2e.test_tls"]


OFFENDERS = [
    ("xetserve.xet.new", "import xetserve.http.ranges", "xet may not know http"),
    ("xetserve.http.new", "from xetserve.xet.hashes import parse_hash", "may not know xet"),
    ("xetserve.xet", "from xetserve import http", "xet may not know http"),
    ("xetserve.net.new", "from xetserve.xet import xorb", "net may not know xet"),
    ("xetserve.net.new", "from xetserve.app.routes import Router", "net may not know app"),
    ("xetserve.net.new", "from xetserve import errors, ops", "net may not know ops"),
    ("xetserve.upstream.new", "import xetserve.pipeline", "upstream may not know pipeline"),
    ("xetserve.pipeline.new", "import xetserve.http.messages as m", "may not know http"),
    ("xetserve.pipeline.new", "from xetserve.net.pool import Pool", "may not know net"),
    ("xetserve.app.new", "from xetserve.net.stream import ByteStream", "may not know net"),
    ("xetserve.app.new", "from xetserve.config.schema import Config", "may not know config"),
    ("xetserve.app.new", "from xetserve.origin import library", "may not know origin"),
    ("xetserve.origin.new", "from xetserve.upstream.cas.client import x", "may not know upstream"),
    ("xetserve.ops.new", "from xetserve.xet.hashes import x", "ops may not know xet"),
    ("xetserve.ops.new", "from xetserve.cli import main", "ops may not know cli"),
    ("xetserve.errors", "from xetserve.metrics.catalogue import x", "errors may not know metrics"),
    ("xetserve.config.schema", "from xetserve.net.tls import x", "config may not know net"),
    ("xetserve.__main__", "from xetserve.ops.logs import x", "__main__ may not know ops"),
    ("xetserve", "from xetserve.cli import main", "__init__ may not know cli"),
    ("xetserve.attic", "", "xetserve.attic has no place in the table"),
    ("xetserve.attic.new", "", "xetserve.attic.new has no place in the table"),
    ("xetserve.pipeline.flow.new", "from xetserve.pipeline.fetch.table import x",
     "pipeline.flow may not know pipeline.fetch"),
    ("xetserve.pipeline.cache.new", "from xetserve.pipeline.reader import x",
     "pipeline.cache may not know pipeline.reader"),
    ("xetserve.pipeline.cache.new", "from xetserve.pipeline import reader",
     "pipeline.cache may not know pipeline.reader"),
    ("xetserve.pipeline.reader", "from xetserve.pipeline.engine import x",
     "pipeline.reader may not know pipeline.engine"),
    ("xetserve.app.download.new", "from xetserve.app.hub.api import x",
     "app.download may not know app.hub"),
    ("xetserve.app.paths", "from xetserve.app.application import x",
     "app.paths may not know app.roof"),
    ("xetserve.pipeline.verify.ledger", "import time", "it is pure"),
    ("xetserve.xet.new", "from .hashes import x", "relative import .hashes.x"),
    ("xetserve.xet.new", "from .. import net", "relative import ...net"),
    ("xetserve.app.new", "import xetserve", "import the module, not all of xetserve"),
    ("xetserve.app.new", "import requests", "requests is not a dependency"),
    ("xetserve.cli", "from aiohttp import web", "aiohttp is not a dependency"),
    ("xetserve.cli", "import pytest", "pytest is not a dependency"),
    ("xetserve.xet.new", "import asyncio", "xet may not import asyncio"),
    ("xetserve.http.new", "import os.path", "http may not import os.path"),
    ("xetserve.http.new", "from time import monotonic", "may not import time.monotonic"),
    ("xetserve.http.new", "from logging import handlers", "may not import logging.handlers"),
    ("xetserve.http.new", "from http import client", "may not import http.client"),
    ("xetserve.http.new", "from urllib.request import urlopen", "urllib.request.urlopen"),
    ("xetserve.xet.new", "import h11", "xet may not import h11"),
    ("xetserve.xet.new", "import aiofiles", "xet may not import aiofiles"),
    ("xetserve.pipeline.new", "import h11", "pipeline may not import h11"),
    ("xetserve.app.new", "import socket", "app may not import socket"),
    ("xetserve.origin.new", "import ssl", "origin may not import ssl"),
    ("xetserve.xet.new", "def f():\n    import socket", "xet may not import socket"),
    ("xetserve.xet.new", "if TYPE_CHECKING:\n    import ssl", "xet may not import ssl"),
    ("xetserve.xet.new", "try:\n    import time\nexcept ImportError:\n    pass", "time"),
    ("xetserve.xet.new", "data = open('x').read()", "xet may not open files"),
    ("xetserve.app.new", "__import__('socket')", "__import__ hides"),
    ("xetserve.app.new", "import importlib", "importlib hides"),
    ("xetserve.xet.new", "from importlib import import_module", "importlib.import_module hides"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "source", "offence"), OFFENDERS, ids=[f"{row[0]}: {row[2]}" for row in OFFENDERS]
)
def test_an_offending_source_is_found(module: str, source: str, offence: str) -> None:
    (found,) = find_offences(source, module)
    assert found.startswith(module)
    assert offence in found


NEIGHBOURS = [
    ("xetserve.xet.new", "import json, struct\nfrom xetserve.xet import hashes\nimport lz4.frame"),
    ("xetserve.xet.new", "from xetserve import errors, metrics\nimport blake3, zstandard"),
    ("xetserve.http.new", "import h11\nfrom http import HTTPStatus\nimport urllib.parse"),
    ("xetserve.http.new", "from email.utils import formatdate\nfrom xetserve import __version__"),
    ("xetserve.net.new", "import asyncio, socket, ssl\nfrom xetserve.http.messages import x"),
    ("xetserve.upstream.new", "import xetserve.net, xetserve.http, xetserve.xet"),
    ("xetserve.pipeline.new", "import aiofiles\nfrom xetserve.upstream.cas.client import x"),
    ("xetserve.app.new", "import asyncio\nfrom xetserve.pipeline.reader import x"),
    ("xetserve.origin.new", "from xetserve.http.ranges import x\nfile = open('x')"),
    ("xetserve.ops.new", "import uvloop, signal\nfrom xetserve.net.listener import x"),
    ("xetserve.cli",
     "import xetserve.config.schema, xetserve.commands.serve.command, xetserve.ops.logs"),
    ("xetserve.commands.new",
     "import xetserve.config.schema, xetserve.app.routes, xetserve.net.listener"),
    ("xetserve.__main__", "from xetserve.cli import main"),
    ("xetserve.metrics.catalogue", "from xetserve.errors import XetserveError"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "source"), NEIGHBOURS)
def test_a_source_within_the_table_passes(module: str, source: str) -> None:
    assert find_offences(source, module) == []
