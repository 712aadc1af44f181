"""`mailboat serve`: a whole server on this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import click

from mailboat.cli.extras import Failure, needing, told_plainly
from mailboat.protocol import MailboatError


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder for everything the server keeps; made on first start.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8787, show_default=True, help="0 takes a free one.")
@click.option("--stop-on-eof", is_flag=True, hidden=True, help="Also stop when the standard input ends.")
def serve(data: Path, host: str, port: int, stop_on_eof: bool) -> None:
    """Receive sessions, keep them, and answer questions about them. Ctrl-C or SIGTERM stops it in good order."""
    with needing("server"):
        from mailboat.server import ServerConfig
        from mailboat.server.serving import run
    with told_plainly():
        config = ServerConfig(data=data, host=host, port=port)
        if stop_on_eof:
            threading.Thread(target=_stop_after_input, daemon=True).start()
        try:
            status = run(config, echo=click.echo)
        except MailboatError:
            raise
        except OSError as error:
            raise Failure(f"the server cannot run on {host}:{port}, data in {data}: {error}") from error
    sys.exit(status)


def _stop_after_input() -> None:
    """A program that has started a server for itself holds its input open: the server ends with it, even by kill -9."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
