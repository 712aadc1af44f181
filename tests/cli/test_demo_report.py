"""The demo's verdict: what is wrong is named, and only a clean comparison is a success."""

import pytest

from mailboat.cli.demo.collected import Collected
from mailboat.cli.demo.compare import Given, compare, content_of
from mailboat.cli.demo.report import report
from mailboat.cli.demo.story import Findings
from mailboat.cli.demo.voice import Voice


def findings(kept: int, *, twice: int = 0, reported: int | None = None) -> Findings:
    """Of ten records, `kept` came."""
    records = [{"sequence": at, "kind": "feature", "name": f"f.{at}", "attributes": {}} for at in range(10)]
    given = {"s": tuple(Given.of(each) for each in records[:kept])}
    comparison = compare({"s": [content_of(each) for each in records]}, given, killed={"s"})
    collected = Collected(records=given, size=1000, reported=reported or kept)
    return Findings(
        modules=3,
        told_before_kill=10,
        windows=2,
        sent=1000 + twice,
        raw_size=4000,
        collected=collected,
        comparison=comparison,
    )


def value(printed: str, name: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.strip().startswith(name)]
    return line.strip().removeprefix(name).strip()


def test_a_clean_comparison_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(findings(10, twice=5), Voice())
    printed = capsys.readouterr().out
    assert value(printed, "missing") == "0"
    assert value(printed, "kept across the kill -9") == "10"
    assert value(printed, "sent twice") == "5 bytes (0.50 %)"
    assert value(printed, "compressed size") == "1000 bytes (4.0 x smaller)"


def test_losses_fail_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert not report(findings(3), Voice())
    printed = capsys.readouterr().out
    assert value(printed, "missing ") == "7"
    assert '"name": "f.3"' in printed
    assert "2 more" in printed


def test_reports_that_count_twice_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert not report(findings(10, reported=20), Voice())
    assert value(capsys.readouterr().out, "counted in the server's reports") == "20"


def test_a_demo_that_found_nothing_fails() -> None:
    assert not report(Findings(), Voice())
