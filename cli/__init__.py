"""The command line: `mailboat`."""


def main() -> None:
    """Entry point of the console script; replaced by the real command group."""
    raise SystemExit("mailboat: the command line is not built yet")
