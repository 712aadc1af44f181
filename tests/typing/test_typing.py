"""The installed packages carry their types: strict mypy finds errors where a host makes them, and only there.

`usage_*.py` beside this file are complete small uses of the public surface. What they get back is pinned by
`assert_type`, and each deliberate misuse bears a `type: ignore[code]`, which strict mypy reports as unused should the
misuse pass. `make check` looks at them too; here they are checked against the packages that the tests run with, under
`make test` the wheel.
"""

import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "mailboat.agent",
    "mailboat.agent.integrations.aiohttp_web",
    "mailboat.agent.integrations.asgi",
    "mailboat.agent.integrations.logs",
    "mailboat.protocol",
    "mailboat.protocol.uploads",
    "mailboat.server",
    "mailboat.cli",
    "mailboat.cli.demo",
)


def mypy(folder: Path, *files: Path) -> tuple[int, str]:
    """Check files as a stranger would: strictly, and with no configuration or cache of ours."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={folder}", *map(str, files)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_every_package_is_typed_for_its_users(tmp_path: Path) -> None:
    """An unknown name is an error of its own; without py.typed the import would be skipped with another."""
    program = tmp_path / "host.py"
    program.write_text("".join(f"import {name}\nprint({name}.no_such_name)\n" for name in PACKAGES))
    status, output = mypy(tmp_path, program)
    assert status == 1
    complaints = [line for line in output.splitlines() if ": error:" in line]
    assert [line.rpartition("[")[2] for line in complaints] == ["attr-defined]"] * len(PACKAGES), output


def test_the_public_surface_has_the_types_it_promises(tmp_path: Path) -> None:
    status, output = mypy(tmp_path, *sorted(Path(__file__).parent.glob("usage_*.py")))
    assert status == 0, output
