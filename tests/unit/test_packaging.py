"""What is installed is what the repository holds: no file forgotten, none left over from an older build."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import pytest

from mailboat.protocol import __version__

REPOSITORY = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder by its relative path, without what Python compiles there."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.skipif(os.environ.get("MAILBOAT_TEST_WHEEL") != "1", reason="of the built wheel: run by `make test`")
@pytest.mark.parametrize("part", ["agent", "protocol", "server", "cli"])
def test_the_wheel_holds_every_file_of_the_repository_and_no_other(part: str) -> None:
    spec = importlib.util.find_spec(f"mailboat.{part}")
    assert spec is not None
    assert spec.origin is not None
    wanted = contents(REPOSITORY / part)
    found = contents(Path(spec.origin).parent)
    forgotten = sorted(wanted.keys() - found.keys())
    assert forgotten == [], "not installed: name the package or its data files in pyproject.toml"
    assert sorted(found.keys() - wanted.keys()) == []
    changed = [name for name in wanted if wanted[name] != found[name]]
    assert changed == [], "changed since the wheel was built: run `make test` again"


def test_what_the_code_says_of_its_version_is_what_is_installed() -> None:
    assert importlib.metadata.version("mailboat") == __version__
