"""`mailboat serve`: a whole server on this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import click

from mailboat.cli.extras import Failure, Misuse, needing, told_plainly
from mailboat.protocol import MailboatError


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for everything the server keeps; made on first start.",
)
@click.option("--host", help="The address to listen on; 127.0.0.1 unless told otherwise.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port, 8787 unless told otherwise; 0 takes a free one.")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A TOML file of settings; the flags here and MAILBOAT_SERVER_* in the environment count for more.",
)
@click.option(
    "--set", "others", multiple=True, metavar="NAME=VALUE", help="Any other setting; may be given several times."
)
@click.option("--stop-on-eof", is_flag=True, hidden=True, help="Also stop when the standard input ends.")
def serve(
    data: Path | None,
    host: str | None,
    port: int | None,
    file: Path | None,
    others: tuple[str, ...],
    stop_on_eof: bool,
) -> None:
    """Receive sessions, keep them, and answer questions about them. Ctrl-C or SIGTERM stops it in good order.

    What can be set is told in docs/deployment.md.
    """
    with needing("server"):
        from mailboat.server.serving import run
        from mailboat.server.settings import load
    with told_plainly():
        flags = {**_named(others), "data": data, "host": host, "port": port}
        config = load(os.environ, file, {name: value for name, value in flags.items() if value is not None})
        if stop_on_eof:
            threading.Thread(target=_stop_after_input, daemon=True).start()
        try:
            status = run(config, echo=click.echo)
        except MailboatError:
            raise
        except OSError as error:
            where = f"{config.host}:{config.port}, data in {config.data}"
            raise Failure(f"the server cannot run on {where}: {error}") from error
    sys.exit(status)


def _named(settings: tuple[str, ...]) -> dict[str, object]:
    """Settings given as NAME=VALUE."""
    named: dict[str, object] = {}
    for each in settings:
        name, sign, value = each.partition("=")
        if not sign:
            raise Misuse(f"--set {each!r}: NAME=VALUE is needed")
        named[name.strip().replace("-", "_")] = value
    return named


def _stop_after_input() -> None:
    """A program that has started a server for itself holds its input open: the server ends with it, even by kill -9."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
