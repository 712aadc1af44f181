"""Agent and server never import each other, protocol does no I/O, nothing grows beyond its agreed size."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.rules import (
    ALLOWED,
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    Module,
    import_complaints,
    imported,
    installed_modules,
    port_complaints,
    size_complaints,
)

PARTS = sorted(ALLOWED)


def folder_of(part: str) -> Path:
    """Where the part is installed, found without importing it."""
    spec = importlib.util.find_spec(f"mailboat.{part}")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def module(part: str, text: str, *, name: str = "made_up", is_package: bool = False) -> Module:
    return Module(f"mailboat.{part}.{name}" if name else f"mailboat.{part}", is_package, text)


@pytest.mark.parametrize("part", PARTS)
def test_no_part_imports_what_it_must_not_know(part: str) -> None:
    modules = list(installed_modules(part, folder_of(part)))
    assert f"mailboat.{part}" in {found.name for found in modules}
    assert [complaint for found in modules for complaint in import_complaints(found)] == []


def test_the_agent_changes_files_by_its_port_alone() -> None:
    found = list(installed_modules("agent", folder_of("agent")))
    assert [complaint for each in found for complaint in port_complaints(each)] == []


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "import os\nos.replace('x', 'y')",
        "import os as system, shutil",
        "from tempfile import mkstemp",
        "from pathlib import Path\nPath('x').write_bytes(b'')",
    ],
)
def test_what_goes_past_the_port_is_found(text: str) -> None:
    assert port_complaints(module("agent", text))
    assert not port_complaints(module("agent", text, name="files"))
    assert not port_complaints(module("server", text))


@pytest.mark.parametrize("part", PARTS)
def test_files_and_functions_keep_to_their_size(part: str) -> None:
    assert [
        complaint for found in installed_modules(part, folder_of(part)) for complaint in size_complaints(found)
    ] == []


@pytest.mark.parametrize(
    ("part", "loaded"),
    [("protocol", "agent server cli aiohttp asyncio"), ("agent", "server cli duckdb"), ("server", "agent cli")],
)
def test_importing_a_part_loads_no_other(part: str, loaded: str) -> None:
    """The rule again, on what really happens: in a fresh interpreter, transitively."""
    others = [name if name in {"aiohttp", "asyncio", "duckdb"} else f"mailboat.{name}" for name in loaded.split()]
    program = f"import sys, mailboat.{part}; print([name for name in {others!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What a host pays for with the agent's import is aiohttp; all else is to be small, and is named here.
DEPENDENCIES = ("aiohttp", "msgpack", "msgspec", "zstandard")
BESIDES = frozenset(
    [
        "concurrent",
        "dataclasses",
        "faulthandler",
        "fcntl",
        "gc",
        "getpass",
        "mmap",
        "platform",
        "pwd",
        "queue",
        "resource",
        "select",
        "termios",
    ]
)
# What only delivering needs, loaded by `agent.sending` when an agent starts; and what some hosts use, some of the time,
# imported where it is used.
LATER = frozenset(
    [
        "cli",
        "server",
        "agent.allowance",
        "agent.connectivity",
        "agent.delivery",
        "agent.entries",
        "agent.flights",
        "agent.http",
        "agent.negotiator",
        "agent.planner",
        "agent.riding",
        "agent.rounds",
        "agent.routes",
        "agent.stretch",
        "agent.synchronizer",
        "agent.traffic",
        "agent.tus_sink",
        "agent.uploader",
        "agent.window",
        "agent.integrations.aiohttp_web",
        "agent.integrations.asgi",
        "agent.integrations.logs",
        "agent.integrations.requests",
        "protocol.negotiation",
        "protocol.packages",
        "protocol.uploads",
    ]
)


def test_importing_the_agent_loads_little_besides_its_dependencies() -> None:
    """No times: a list of what may be there, and one of what may not."""
    program = f"""
import sys, {", ".join(DEPENDENCIES)}
before = set(sys.modules)
import mailboat.agent
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    ours = {name.removeprefix("mailboat.") for name in loaded if name.startswith("mailboat.")}
    assert "agent.recorder" in ours
    assert ours & LATER == set()
    others = {name.partition(".")[0].removeprefix("_") for name in loaded} - {"mailboat"}
    assert others - BESIDES == set()


def test_importing_the_agent_loads_nothing_heavy_by_way_of_its_dependencies() -> None:
    heavy = [
        "sqlite3",
        "duckdb",
        "click",
        "rich",
        "nacl",
        "platformdirs",
        "portalocker",
        "tomllib",
        "multiprocessing",
        "unittest",
        "aiohttp.web",
    ]
    program = f"import sys, mailboat.agent; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_agent_loads_aiohttp() -> None:
    """It is not put off until the agent starts: it would hold up the host's event loop then, see `agent.sending`."""
    program = "import sys, mailboat.agent; print('aiohttp.client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("part", PARTS)
def test_packages_come_from_where_they_should(part: str) -> None:
    """Under `make test` from the wheel; never from the folder of that name in the repository."""
    folder = folder_of(part)
    assert folder.parent.name == "mailboat"
    if os.environ.get("MAILBOAT_TEST_WHEEL") == "1":
        assert "site-packages" in folder.parts
        assert (folder / "py.typed").is_file()
    assert importlib.util.find_spec(part) is None


# The rules must be able to complain; otherwise the tests above hold nothing.


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("agent", "import mailboat.server"),
        ("agent", "from mailboat.server.app import create_app"),
        ("agent", "from mailboat import server"),
        ("agent", "from ..server import app"),
        ("agent", "from mailboat import cli"),
        ("agent", "def late():\n    from mailboat.server import app"),
        ("agent", "if TYPE_CHECKING:\n    import mailboat.server.app"),
        ("agent", "importlib.import_module('mailboat.server')"),
        ("agent", "importlib.import_module(name)"),
        ("agent", "import_module('mailboat.server')"),
        ("agent", "import agent.store"),
        ("server", "from mailboat.agent import Agent"),
        ("server", "from protocol.segment import SegmentReader"),
        ("protocol", "import mailboat.agent"),
        ("protocol", "from mailboat.server import catalog"),
        ("protocol", "import asyncio"),
        ("protocol", "import os.path"),
        ("protocol", "from time import monotonic"),
        ("protocol", "import random, zlib"),
        ("protocol", "from urllib.request import urlopen"),
        ("protocol", "import socket"),
        ("protocol", "from http.client import HTTPConnection"),
        ("protocol", "from pathlib import Path"),
        ("protocol", "import aiohttp"),
        ("protocol", "from datetime import datetime\nstart = datetime.now()"),
        ("protocol", "import datetime\nstart = datetime.datetime.now(datetime.UTC)"),
        ("protocol", "import datetime\nday = datetime.date.today()"),
        ("protocol", "import uuid\nnew = uuid.uuid4()"),
        ("protocol", "from uuid import uuid4"),
        ("protocol", "text = open('file').read()"),
        ("protocol", "print('seen')"),
    ],
)
def test_a_forbidden_import_is_found(part: str, text: str) -> None:
    assert len(import_complaints(module(part, text))) == 1


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("agent", "import asyncio, os, time\nfrom mailboat.protocol.segment import SegmentReader"),
        ("agent", "from . import store\nfrom .store import Store\nfrom ..protocol import limits"),
        ("server", "import sqlite3\nfrom mailboat import protocol"),
        ("cli", "from mailboat.agent import Agent\nfrom mailboat.server import create_app"),
        ("protocol", "import zlib, struct, msgpack\nfrom urllib.parse import quote\nimport urllib.parse"),
        ("protocol", "from http import HTTPStatus"),
        ("protocol", "from datetime import UTC, datetime\nwhen = datetime.fromtimestamp(0, UTC)"),
        ("protocol", "from uuid import UUID\nknown = UUID(int=0)"),
    ],
)
def test_an_allowed_import_is_not_complained_of(part: str, text: str) -> None:
    assert import_complaints(module(part, text)) == []


def test_relative_imports_are_resolved_from_packages_and_from_modules() -> None:
    text = "from . import a\nfrom ..b import c"
    inner = module("protocol", text, name="uploads.client")
    package = module("protocol", text, name="uploads", is_package=True)
    assert [name for _, name in imported(inner)] == ["mailboat.protocol.uploads.a", "mailboat.protocol.b.c"]
    assert [name for _, name in imported(package)] == ["mailboat.protocol.uploads.a", "mailboat.protocol.b.c"]


def test_the_size_rules_draw_the_line_where_agreed() -> None:
    def function(lines: int) -> str:
        return "@decorated\ndef long():\n" + "    pass\n" * (lines - 2)

    assert size_complaints(module("agent", function(MAX_FUNCTION_LINES))) == []
    assert len(size_complaints(module("agent", function(MAX_FUNCTION_LINES + 1)))) == 1
    assert len(size_complaints(module("agent", function(MAX_FUNCTION_LINES + 1).replace("def", "async def")))) == 1
    assert size_complaints(module("agent", "pass\n" * MAX_FILE_LINES)) == []
    assert len(size_complaints(module("agent", "pass\n" * (MAX_FILE_LINES + 1)))) == 1


def test_installed_modules_are_named_as_they_are_imported(tmp_path: Path) -> None:
    for path in ("__init__.py", "store.py", "web/__init__.py", "web/page.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    found = {(each.name, each.is_package) for each in installed_modules("server", tmp_path)}
    assert found == {
        ("mailboat.server", True),
        ("mailboat.server.store", False),
        ("mailboat.server.web", True),
        ("mailboat.server.web.page", False),
    }
