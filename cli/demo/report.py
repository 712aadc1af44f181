"""The demo's findings as a table, and whether they are what was promised."""

from __future__ import annotations

from typing import Final

from mailboat.cli import output
from mailboat.cli.demo.compare import Comparison, SessionComparison
from mailboat.cli.demo.story import WINDOW, Findings
from mailboat.cli.demo.voice import Voice

_NAMED: Final = 5
"""Records named of each kind of fault; the rest are counted."""


def report(findings: Findings, voice: Voice) -> bool:
    """Print the table, and each fault by name; True when nothing is missing, doubled, or otherwise wrong."""
    voice.table("Recorded by the program, and given back by the server", _rows(findings))
    for session in findings.comparison.sessions:
        _name_faults(session, voice)
    return findings.holds


def _rows(findings: Findings) -> list[tuple[str, str]]:
    comparison, collected = findings.comparison, findings.collected
    size, reported = (collected.size, collected.reported) if collected else (0, 0)
    twice = findings.sent - size
    return [
        ("modules examined", f"{findings.modules:,}"),
        ("  that did not parse (exceptions)", f"{findings.faults:,}"),
        ("records, as the program was told", f"{comparison.total('told'):,}"),
        ("  of these told before the kill -9", f"{findings.told_before_kill:,}"),
        ("  kept across the kill -9", f"{_kept_across_kill(comparison):,}"),
        ("delivered", f"{comparison.total('kept'):,}"),
        ("missing", f"{comparison.total('missing'):,}"),
        ("duplicated", f"{comparison.total('duplicated'):,}"),
        ("out of order", f"{comparison.total('disordered'):,}"),
        ("never told of", f"{comparison.total('unknown'):,}"),
        ("  in flight at the kill -9, and kept", f"{comparison.total('in_flight'):,}"),
        ("counted in the server's reports", f"{reported:,}"),
        ("raw size", output.size(findings.raw_size)),
        (
            "compressed size",
            f"{output.size(size)} ({findings.raw_size / size:.1f} x smaller)" if size else output.size(size),
        ),
        ("cuts of the connection during upload", f"{len(findings.cuts)}"),
        (f"connectivity windows of {WINDOW} s", f"{findings.windows}"),
        ("sent twice", f"{twice:,} bytes ({100 * twice / size:.2f} %)" if size else "nothing was sent"),
        ("time", f"{findings.seconds:.1f} s"),
    ]


def _kept_across_kill(comparison: Comparison) -> int:
    return sum(session.kept for session in comparison.sessions if session.killed)


def _name_faults(session: SessionComparison, voice: Voice) -> None:
    for what in ("missing", "duplicated", "unknown", "disordered", "skipped"):
        found = getattr(session, what)
        for each in found[:_NAMED]:
            voice.say(f"{what} in session {session.session_id}: {each}")
        if len(found) > _NAMED:
            voice.say(f"{what} in session {session.session_id}: {len(found) - _NAMED:,} more")
