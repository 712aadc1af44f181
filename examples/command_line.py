"""A command line tool: it records what it was used for, and takes at most a second longer for that.

What is not delivered in this second waits in the store, and goes with a later run (or with ``mailboat sync``).

Run it: python examples/command_line.py README.md no-such-file
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from mailboat.agent import Agent


def count(agent: Agent, path: Path) -> int:
    """The words of one file; what cannot be read is said, recorded, and counted as nothing."""
    try:
        with agent.timing("count.file"):
            words = len(path.read_text().split())
    except (OSError, UnicodeDecodeError) as error:
        agent.exception(error, context="while counting words")
        print(f"{path}: {error}", file=sys.stderr)
        return 0
    agent.value("count.words", words, unit="words")
    print(f"{words:8} {path}")
    return words


async def main() -> int:
    """Count the words of the files given; exit status 1 if there were none."""
    parser = argparse.ArgumentParser(description="Count words.")
    parser.add_argument("files", nargs="+", type=Path)
    files = parser.parse_args().files
    async with Agent(product="Acme Studio", application="count", version="1.0.0", stop_timeout=1.0) as agent:
        agent.feature("count", files=len(files))
        total = sum(count(agent, path) for path in files)
    return 0 if total else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
