"""The server's end of the decoder process: starts it, feeds it, and replaces it when it dies.

Plain functions that block; to be called from one thread at a time, and never on the event loop.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from mailboat.protocol.errors import MailboatError
from mailboat.protocol.limits import MIB
from mailboat.server.decoder import Outcome, Task, files_of, read_frame, write_frame

TIME_LIMIT: Final = 60.0
"""Seconds for one batch, after which the decoder is ended. A batch takes one or two; one of nothing but bombs may need
more, and its segments are then taken one by one, where 128 MiB of raw records take about two."""
PIECE: Final = 1 * MIB
"""Bytes read and passed on at a time."""


class DecoderDied(MailboatError):
    """The decoder process ended, or was ended for taking too long; `number` is that of the task under way, None when
    there was none.
    """

    def __init__(self, number: int | None, detail: str) -> None:
        super().__init__(detail)
        self.number = number


class DecoderRefused(MailboatError):
    """The rows could not be written: the disk is full, say. No fault of any segment."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The rows of a batch: two files in `folder` for each of `tables`."""

    folder: Path
    tables: tuple[str, ...]

    def files(self, table: str) -> tuple[Path, Path]:
        """The lines of a table, and the texts that go beside them, as `rows` tells."""
        return files_of(self.folder, table)


class Decoder:
    """One decoder process, from `start` or from when it is first needed until `close`."""

    def __init__(
        self,
        command: Sequence[str] | None = None,
        time_limit: float = TIME_LIMIT,
        keys: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`command` starts the process; by default this interpreter, without the working folder on its path. `keys`
        gives private keys as text, for what is sealed.
        """
        self._keys = keys
        self._command = command or (sys.executable, "-P", "-m", "mailboat.server.decoder")
        self._time_limit = time_limit
        self._process: subprocess.Popen[bytes] | None = None
        self._under_way: int | None = None

    def start(self) -> None:
        """Start the process ahead of the first `decode`, which would have to wait for it. Where it cannot be started,
        `decode` will say so.
        """
        with suppress(OSError):
            self._running()

    def decode(
        self, folder: Path, tasks: Iterable[tuple[Task, Iterable[bytes]]], done: Callable[[Outcome], None]
    ) -> Decoded:
        """The rows of all tasks, each given with its bytes in pieces. `folder` must exist and be empty. `done` is told
        of each outcome before the next task is asked for.

        Raises `DecoderDied` (what is in the folder is of no use then; the next call starts another process) and
        `DecoderRefused`, and whatever reading the pieces raises.
        """
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it died while nothing was asked of it
        watchdog = threading.Timer(self._time_limit, self._running().kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._send({"begin": str(folder), "keys": list(self._keys())})
            for task, pieces in tasks:
                done(self._one(task, pieces))
            return Decoded(folder, tuple(self._ask({"finish": True}, "finished")))
        except (BrokenPipeError, DecoderDied) as error:
            number, self._under_way = self._under_way, None
            status = self.close()
            raise DecoderDied(number, f"the decoder ended with status {status}") from error
        except BaseException:
            # It is in the middle of a task, or of an answer: begin anew.
            self.close()
            raise
        finally:
            watchdog.cancel()

    def abort(self) -> None:
        """End the process from any thread: a `decode` under way raises `DecoderDied`."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> int | None:
        """End the process; its status, None when there was none."""
        process, self._process, self._under_way = self._process, None, None
        if process is None:
            return None
        process.kill()
        for stream in (process.stdin, process.stdout):
            _close(cast("IO[bytes]", stream))
        return process.wait()

    def _one(self, task: Task, pieces: Iterable[bytes]) -> Outcome:
        self._under_way = task.number
        self._send({"segment": task.to_wire()})
        for piece in pieces:
            self._send({"bytes": piece})
        outcome = Outcome.from_wire(self._ask({"end": True}, "decoded"))
        self._under_way = None
        return outcome

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # A session of its own: Ctrl-C in the server's terminal is for the server, which then ends this one.
            self._process = subprocess.Popen(  # noqa: S603 - the command is our own
                list(self._command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        return self._process

    def _send(self, frame: dict[str, Any]) -> None:
        write_frame(cast("Any", self._running().stdin), frame)

    def _ask(self, frame: dict[str, Any], expected: str) -> Any:  # noqa: ANN401 - what the frame's answer holds
        process = self._running()
        self._send(frame)
        cast("IO[bytes]", process.stdin).flush()
        reply = read_frame(cast("Any", process.stdout))
        if reply is None:
            raise DecoderDied(self._under_way, "the decoder ended")
        if "refused" in reply:
            raise DecoderRefused(f"the rows cannot be written: {reply['refused']}")
        return reply[expected]


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        # What was buffered for a process that has died; its death is reported by the caller.
        return
