"""What every test gets: an environment of its own, a seed it can be repeated with, and hypothesis profiles.

Environment variables of the test run itself (all optional):

* ``MAILBOAT_TEST_WHEEL=1``: the packages must come from an installed wheel (set by ``make test``).
* ``MAILBOAT_TEST_PROFILE=fast|soak``: how many examples hypothesis tries; ``make soak`` sets ``soak``.
* ``MAILBOAT_TEST_HOURS=0.25``: how long the test of hours of faults takes.
* ``MAILBOAT_TEST_SEED=N``: the seed a failed test has printed.
"""

import os
import secrets
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

# Suites and checks that tests share say what they found, as tests do.
pytest.register_assert_rewrite("testkit")

TEST_VARIABLES = "MAILBOAT_TEST_"

# During these tests the branches that they reach are counted (`make test`); tracing costs, so only here.
MEASURED = ("unit/agent", "unit/protocol", "unit/uploads", "model", "faults", "conformance")
# Those that trace by themselves.
UNMEASURED = ("unit/agent/test_intrusions.py",)

# No deadline: no test asserts a time. The blob in the output repeats a failed example on another machine.
hypothesis.settings.register_profile("fast", deadline=None, print_blob=True, max_examples=100)
hypothesis.settings.register_profile("soak", deadline=None, print_blob=True, max_examples=20_000)
hypothesis.settings.load_profile(os.environ.get(TEST_VARIABLES + "PROFILE", "fast"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).as_posix()
        if not place.startswith(MEASURED) or place in UNMEASURED:
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point every place mailboat looks for settings or keeps files at this test's own folder.

    A developer's MAILBOAT_SERVER or DO_NOT_TRACK must not change what a test sees, and no test may write into a home.
    """
    for name in list(os.environ):
        if name.startswith("MAILBOAT_") and not name.startswith(TEST_VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    for name, folder in {
        "XDG_DATA_HOME": ".local/share",
        "XDG_STATE_HOME": ".local/state",
        "XDG_CONFIG_HOME": ".config",
        "XDG_CACHE_HOME": ".cache",
        "XDG_RUNTIME_DIR": ".run",
    }.items():
        monkeypatch.setenv(name, str(home / folder))


@pytest.fixture
def seed() -> int:
    """A seed for this test's random choices: fresh each time, printed when the test fails, repeatable."""
    given = os.environ.get(TEST_VARIABLES + "SEED")
    return int(given) if given else secrets.randbits(32)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    chosen = getattr(item, "funcargs", {}).get("seed")
    if report.failed and chosen is not None:
        report.sections.append(("seed", f"repeat with: {TEST_VARIABLES}SEED={chosen} pytest '{item.nodeid}'"))
    return report
