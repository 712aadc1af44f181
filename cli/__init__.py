"""The command line: `mailboat`.

Exit status: 0 done, 1 something is left or damaged, 2 wrong usage (a missing extra included). What people read is drawn
with rich on a terminal; anywhere else the same facts come as lines with tabs, or as JSON.
"""

import sys


def main() -> None:
    """Entry point of the console script. Never returns; the exit status says how it went."""
    try:
        import click as _  # noqa: F401 - asked for first, so that its absence is told in a sentence
    except ModuleNotFoundError:
        print("mailboat: the command line needs click and rich: pip install 'mailboat[cli]'", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    from mailboat.cli.root import mailboat

    mailboat()
