"""The recording calls of an agent: those of the session that runs, or without effect while none does.

A function that the application has kept since before the start (`feature` as a value, what `emitter` has returned)
records all the same once a session runs: nobody would notice if it went on doing nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from mailboat.agent.recorded import mark
from mailboat.agent.recorder import Recorder, declaration_of, one_too_many
from mailboat.agent.scrub import Scrub, Scrubber
from mailboat.agent.scrubbed import Recording, ScrubbedRecorder
from mailboat.agent.timing import Timing
from mailboat.protocol.limits import MAX_SCHEMAS
from mailboat.protocol.records import Kind, Level

_Declaration = tuple[str, tuple[str, ...], Kind]


class _Later:
    """An emitter that was declared while no session ran: `call` is that of the session that runs, if one does."""

    __slots__ = ("call",)

    def __init__(self) -> None:
        self.call: Callable[..., None] = _ignore

    def __call__(self, *values: object) -> None:
        self.call(*values)


class RecordingCalls:
    """What an application records with. Plain functions: any thread, never waiting, never raising."""

    def __init__(self) -> None:
        """No session runs."""
        self._later: dict[_Declaration, _Later] = {}
        self._record_with(None)

    @property
    def session_id(self) -> str | None:
        """The id of the running (or last) session."""
        raise NotImplementedError

    def _record_with(self, made: Recorder | None, scrub: Scrub | None = None) -> None:
        """Make these the calls of a recorder, with what `scrub` leaves of their attributes; or calls without effect."""
        recorder: Recording | None = made
        if made is not None and scrub is not None:
            recorder = ScrubbedRecorder(made, Scrubber(scrub))
        self.feature: Callable[..., None] = recorder.feature if recorder is not None else self._feature
        self._recorder = recorder
        for declaration, later in tuple(self._later.items()):
            later.call = recorder.emitter(*declaration) if recorder is not None else _ignore

    def _feature(self, name: str, /, **attributes: object) -> None:
        """`feature`, for whoever keeps it as it is while no session runs."""
        if self._recorder is not None:
            self._recorder.feature(name, **attributes)

    def value(self, name: str, number: float, /, unit: str | None = None, **attributes: object) -> None:
        """Record a number to be aggregated, in `unit`."""
        if self._recorder is not None:
            self._recorder.value(name, number, unit, **attributes)

    def timing(self, name: str, /, **attributes: object) -> Timing:
        """A context manager that records how long its block took; ``cancel()`` on it discards."""
        return Timing(self._time, name, attributes)

    def _time(self, name: str, nanoseconds: int, attributes: dict[str, Any]) -> None:
        if self._recorder is not None:
            self._recorder.timing(name, nanoseconds, attributes)

    def event(self, name: str, /, level: int = Level.INFO, message: str | None = None, **attributes: object) -> None:
        """Record anything else, with a `level` of `Level` and an optional text."""
        if self._recorder is not None:
            self._recorder.event(name, level, message, **attributes)

    def exception(
        self,
        error: BaseException | None = None,
        /,
        context: str | None = None,
        *,
        level: int = Level.ERROR,
        **attributes: object,
    ) -> None:
        """Record `error`, or the exception being handled; `context` says what was being done."""
        error = error if error is not None else sys.exc_info()[1]
        if self._recorder is not None and error is not None:
            self._recorder.exception(error, context, attributes, level)
            if isinstance(error, BaseException):  # a text, as loggers take it, is a mistake and told all the same
                mark(error, self.session_id)

    def set_installation(self, installation_id: str, /, **properties: object) -> None:
        """Say which installation this is, and what is known of it."""
        if self._recorder is not None:
            self._recorder.set_installation(installation_id, properties)

    def emitter(self, name: str, /, *fields: str, kind: Kind = Kind.FEATURE) -> Callable[..., None]:
        """Declare a record once; the function returned records its `fields` by position, at two thirds of the cost.

        It belongs to the running session. Declared while none runs, it records in each that is begun afterwards, a
        little slower. Raises `ValueError` for a declaration that cannot be: a mistake in the application's source.
        """
        if self._recorder is None:
            return self._declared_before(name, fields, kind)
        return self._recorder.emitter(name, fields, kind)

    def _declared_before(self, name: str, fields: tuple[str, ...], kind: Kind) -> Callable[..., None]:
        declaration = declaration_of(name, fields, kind)
        if len(self._later) >= MAX_SCHEMAS and declaration not in self._later:
            raise one_too_many(name)
        later = self._later.setdefault(declaration, _Later())
        if self._recorder is not None:  # another thread has just started the agent
            later.call = self._recorder.emitter(*declaration)
        return later


def _ignore(*_: object, **__: object) -> None:
    """What recording does when nothing is being recorded."""
