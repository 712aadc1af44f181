"""The demo's real work: what `ast` finds in the modules of the standard library.

`ast.parse` keeps the interpreter's lock for as long as a file takes, a second for the largest. A program whose event
loop must stay responsive does this in processes of its own: run as ``python -m mailboat.cli.demo.parsing``, this module
takes one JSON line ``[module, path]`` at a time on its standard input and answers each with one frame (`write_frame`)
of `Facts` on its standard output. It ends with its input, hence with the program that started it, however that ended.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import struct
import sys
import sysconfig
import warnings
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack

FRAME_HEAD: Final = struct.Struct("<I")
_NOT_ITS_OWN: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Module:
    """A module by its dotted name, and where its source lies."""

    name: str
    path: str

    @property
    def package(self) -> str:
        """The first two steps of the name; the module itself, if it is in no package."""
        return ".".join(self.name.split(".")[:2])


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found in one module.

    `definitions` are the functions and classes as (name, first line, number of lines). `fault` is the type name and the
    arguments of the exception that parsing raised, if it did; there are no nodes and definitions then.
    """

    lines: int
    size: int
    nodes: int = 0
    definitions: tuple[tuple[str, int, int], ...] = ()
    fault: tuple[str, tuple[Any, ...]] | None = None

    def raise_fault(self) -> None:
        """Raise the exception that parsing raised, made again from its type and arguments; return if it raised none."""
        if self.fault is None:
            return
        name, arguments = self.fault
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            raise kind(*arguments)
        raise RuntimeError(name, *arguments)


def standard_library() -> list[Module]:
    """The modules of the running Python's standard library, its test files included where they are shipped, in order of
    their paths.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _NOT_ITS_OWN)
        here = Path(folder)
        found += [_module(root, here / name) for name in sorted(files) if name.endswith(".py")]
    return found


def _module(root: Path, path: Path) -> Module:
    steps = path.relative_to(root).with_suffix("").parts
    return Module(".".join(steps[:-1] if steps[-1] == "__init__" and len(steps) > 1 else steps), str(path))


def examine(source: bytes, name: str) -> Facts:
    """Parse a module's source; what cannot be parsed is told as a fault, with what can be counted without."""
    lines = len(source.splitlines())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, name)
        return _count(tree, lines, len(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Facts(lines, len(source), fault=(type(error).__name__, tuple(error.args)))


def _count(tree: ast.Module, lines: int, size: int) -> Facts:
    nodes = 0
    definitions = []
    for node in ast.walk(tree):
        nodes += 1
        if isinstance(node, _DEFINITIONS):
            definitions.append((node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1))
    return Facts(lines, size, nodes, tuple(definitions))


def examine_file(module: Module) -> Facts:
    """Read and parse a module; a file that cannot be read is a fault as well."""
    try:
        source = Path(module.path).read_bytes()
    except OSError as error:
        return Facts(0, 0, fault=(type(error).__name__, tuple(error.args)))
    return examine(source, module.name)


def write_frame(stream: BinaryIO, facts: Facts) -> None:
    """Write `facts`: the length of what follows as 32 bits, little-endian, then msgpack."""
    packed = msgpack.packb(astuple(facts), default=str, unicode_errors="surrogateescape")
    stream.write(FRAME_HEAD.pack(len(packed)) + packed)
    stream.flush()


def read_content(packed: bytes) -> Facts:
    """The facts in a frame's content."""
    lines, size, nodes, definitions, fault = msgpack.unpackb(packed, use_list=False, unicode_errors="surrogateescape")
    return Facts(lines, size, nodes, definitions, fault)


def main() -> None:
    """Serve requests until the input ends."""
    for line in sys.stdin.buffer:
        write_frame(sys.stdout.buffer, examine_file(Module(*json.loads(line))))


if __name__ == "__main__":
    # The program on the other end was killed, or was interrupted together with this process: either way, just end.
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
