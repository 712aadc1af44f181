"""The demo's work: real modules of the running Python, in processes of their own."""

import ast
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from mailboat.cli.demo.parsers import Parsers
from mailboat.cli.demo.parsing import (
    FRAME_HEAD,
    Facts,
    Module,
    examine,
    examine_file,
    read_content,
    standard_library,
    write_frame,
)


def test_the_standard_library_is_found_without_what_was_installed() -> None:
    found = {module.name: module for module in standard_library()}
    assert {"ast", "asyncio", "asyncio.events", "json.decoder"} <= set(found)
    assert Path(found["ast"].path).samefile(ast.__file__)
    assert not any("site-packages" in name or "dist-packages" in name for name in found)
    assert len(found) == len(standard_library())


@pytest.mark.parametrize(
    ("name", "package"), [("ast", "ast"), ("asyncio.events", "asyncio.events"), ("test.data.bad", "test.data")]
)
def test_a_package_is_the_first_two_steps(name: str, package: str) -> None:
    assert Module(name, "").package == package


def test_facts_of_a_module() -> None:
    source = b"class A:\n    def f(self):\n        pass\n\nasync def g(): ...\n"
    facts = examine(source, "made_up")
    assert facts.definitions == (("A", 1, 3), ("g", 5, 1), ("f", 2, 2))
    assert (facts.lines, facts.size, facts.nodes) == (5, len(source), len(list(ast.walk(ast.parse(source)))))
    facts.raise_fault()


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (b"print 'old'\n", SyntaxError),
        (b"# -*- coding: uft-8 -*-\n", SyntaxError),
        (b"a = '\xf6'\n", SyntaxError),
        (b"\0", (SyntaxError, ValueError)),
        (b"(" * 10_000, (SyntaxError, MemoryError, RecursionError)),
        (b"if x:\n    pass\n   y\n", IndentationError),
    ],
)
def test_what_does_not_parse_is_a_fault_that_survives_the_wire(source: bytes, kind: type[Exception]) -> None:
    facts = examine(source, "made_up")
    stream = BytesIO()
    write_frame(stream, facts)
    content = stream.getvalue()[FRAME_HEAD.size :]
    assert FRAME_HEAD.unpack(stream.getvalue()[: FRAME_HEAD.size]) == (len(content),)
    with pytest.raises(Exception) as raised:
        read_content(content).raise_fault()
    assert isinstance(raised.value, kind)
    with pytest.raises(type(raised.value)) as here:
        ast.parse(source, "made_up")
    assert str(raised.value) == str(here.value)


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        examine_file(Module("x", str(tmp_path / "x.py"))).raise_fault()


def test_a_fault_of_a_foreign_type_is_told_by_its_name() -> None:
    with pytest.raises(RuntimeError, match="Unheard"):
        Facts(0, 0, fault=("Unheard", ("why",))).raise_fault()


async def test_parsing_processes_answer_and_end() -> None:
    modules = {module.name: module for module in standard_library()}
    async with Parsers(2) as parsers:
        facts = await parsers.examine(modules["ast"])
        assert facts == examine_file(modules["ast"])
        assert (await parsers.examine(modules["json.decoder"])).nodes > 0


def test_a_parsing_process_ends_when_its_reader_is_gone() -> None:
    """As after a kill -9 of the program: the next answer has nowhere to go."""
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-m", "mailboat.cli.demo.parsing"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        os.close(reading)
        _, complaints = process.communicate(b'["ast", "%s"]\n' % ast.__file__.encode(), timeout=60)
    assert complaints == b""
    assert process.returncode == 0
