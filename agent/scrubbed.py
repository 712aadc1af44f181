"""Recording through a scrubber: the recording calls of a session, each of which has its attributes scrubbed first.

Used when the application passes ``scrub``. What comes out of the scrubber is all that reaches the recorder, so
nothing else is ever packed; a record whose scrubbing fails is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mailboat.agent.intake import Lost
from mailboat.agent.log import log
from mailboat.agent.recorder import Recorder
from mailboat.agent.scrub import Scrubber
from mailboat.protocol.records import Kind, Level


class Recording(Protocol):
    """The recording calls: what `Recorder` and `ScrubbedRecorder` have in common."""

    @property
    def feature(self) -> Callable[..., None]:
        """Record the use of a feature."""

    def value(self, name: str, number: float, /, unit: str | None = None, **attributes: object) -> None:
        """Record a number."""

    def timing(self, name: str, duration: int, attributes: dict[str, Any]) -> None:
        """Record how long something took."""

    def event(self, name: str, /, level: int = Level.INFO, message: str | None = None, **attributes: object) -> None:
        """Record anything else."""

    def exception(
        self, error: BaseException | None, context: str | None, attributes: dict[str, Any], level: int = Level.ERROR
    ) -> None:
        """Record an exception."""

    def set_installation(self, installation_id: str, properties: dict[str, Any]) -> None:
        """Record which installation this is."""

    def emitter(self, name: str, fields: Sequence[str], kind: Kind = Kind.FEATURE) -> Callable[..., None]:
        """A function that records by position."""


class ScrubbedRecorder:
    """The calls of `recorder`, with what `scrubber` leaves of their attributes. It never raises either."""

    def __init__(self, recorder: Recorder, scrubber: Scrubber) -> None:
        self._recorder, self._scrubber = recorder, scrubber
        self._told = False

    def feature(self, name: str, /, **attributes: object) -> None:
        """See `Recording`."""
        kept = self._kept(name, attributes)
        if kept is not None:
            self._recorder.feature(name, **kept)

    def value(self, name: str, number: float, /, unit: str | None = None, **attributes: object) -> None:
        """See `Recording`."""
        kept = self._kept(name, attributes)
        if kept is not None:
            self._recorder.value_of(name, number, unit, kept)

    def timing(self, name: str, duration: int, attributes: dict[str, Any]) -> None:
        """See `Recording`."""
        kept = self._kept(name, attributes)
        if kept is not None:
            self._recorder.timing(name, duration, kept)

    def event(self, name: str, /, level: int = Level.INFO, message: str | None = None, **attributes: object) -> None:
        """See `Recording`."""
        kept = self._kept(name, attributes)
        if kept is not None:
            self._recorder.event_of(name, level, message, kept)

    def exception(
        self, error: BaseException | None, context: str | None, attributes: dict[str, Any], level: int = Level.ERROR
    ) -> None:
        """See `Recording`."""
        kept = self._kept("exception", attributes)
        if kept is not None:
            self._recorder.exception(error, context, kept, level)

    def set_installation(self, installation_id: str, properties: dict[str, Any]) -> None:
        """See `Recording`."""
        kept = self._kept("installation", properties)
        if kept is not None:
            self._recorder.set_installation(installation_id, kept)

    def emitter(self, name: str, fields: Sequence[str], kind: Kind = Kind.FEATURE) -> Callable[..., None]:
        """See `Recording`. A field that the scrubber takes away is recorded as nil; one that it adds is not
        recorded.
        """
        emit = self._recorder.emitter(name, fields, kind)

        def scrubbed(*values: object) -> None:
            if len(values) != len(fields):
                emit(*values)  # raises as any function does that is called with too few or too many arguments
                return
            kept = self._kept(name, dict(zip(fields, values, strict=True)))
            if kept is not None:
                emit(*(kept.get(field) for field in fields))

        return scrubbed

    def _kept(self, name: str, attributes: Mapping[str, Any]) -> dict[str, Any] | None:
        """The attributes to keep; None when the record must be dropped."""
        try:
            return {str(key): value for key, value in self._scrubber.scrub(name, attributes).items()}
        except Exception as error:  # noqa: BLE001 - the application's own callable may raise anything
            self._recorder.drop(Lost.SCRUB_FAILED)
            if not self._told:
                self._told = True  # what the error says may be the very secret
                log.warning("scrub raised %s, such records are dropped and counted", type(error).__name__)
            return None
