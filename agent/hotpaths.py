"""The recording calls themselves: functions made from one template, so that each does exactly the same and nothing
more.

Closures are the fastest thing Python has for this: every name is a cell, found without a look-up. `*args` and
attribute access would cost a fifth of the whole call, hence the template: each call gets the very parameters that it
takes. Its source is made of the fixed text below, kinds and numbered parameters; nothing that an application says
ever becomes part of it.

There is no lock. The interpreter lets another thread run, calls a signal handler or a finalizer, and raises an
exception from outside at the entry of a Python function, after the call of a C function and when a loop jumps back,
and nowhere else; what stands between two such places is one step. (Up to Python 3.11 a finalizer is also called where
a container is made; none is made within a step.) All calls of one recorder share their cells (but for the count of
each), so that turning to another half is one step, too: `Surroundings` shows the four cells for it. Line by line:

* A record *fits* if it may be packed as it stands: plain values under names that are known to be harmless (see
  `_fit_of_attributes`), which come to no more than a record may have. Packing it runs nobody's code (but for the time
  zone of a date), and ``pack`` keeps nothing from one call to the next, so whoever records meanwhile (another thread, a
  signal handler) is not in its way. Anything else goes to ``odd``, which takes the secrets out of it and cuts it first.
* ``count`` and ``write`` are one step: of every half it is known what it holds. `ValueError` is how a mapping says that
  it has no room; any other exception came in after the step, and the record is there.
* Between ``tell`` and the last line others may have recorded: then the end that they have stored is the larger one. Or
  the calls have been turned to another half: then ``words`` is another object, even if the half is the same again.

Where other interpreters, or builds without the interpreter lock, know no such steps, a lock is put around them.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import CellType, CodeType, FunctionType
from typing import Any, Final, Protocol

from msgspec import Struct

from mailboat.agent.journal import Half
from mailboat.agent.journal_layout import END
from mailboat.agent.secret_names import names_secret, names_token
from mailboat.protocol.limits import MAX_RECORD
from mailboat.protocol.records import Kind, Schema

_TEMPLATE: Final = """
def make(
    acquire, clock, commit, count, counted, end, known, odd, pack, plain, release, slow, tell, tracked, words, write
):
    def call({parameters}):
        nonlocal count, end
        try:
            packed = pack(({fields})) if {fits} else None
            if packed is None or len(packed) > {most}:
                packed = odd(({fields}))
        except Exception as error:
            packed = odd(({fields}), error)
        if packed is None:
            return
        try:
            {acquire}
            count += 1; write(packed)
            place = words
            now = tell()
            if place is words and now > end: place[{end_at}] = end = now
        except ValueError as error:
            count -= 1
            slow(packed, error, counted)
        except BaseException:
            commit()
            raise
        {release}
    return call
"""
_UNLOCKED: Final = {"acquire": "", "release": ""}
_LOCKED: Final = {"acquire": "acquire()", "release": "finally: release()"}

STEPS: Final = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether this interpreter has the steps that the template relies on."""

PLAIN: Final = frozenset({bool, bytes, float, int, str, type(None)})
"""The types whose values hold nothing that has a name, and are packed without running anybody's code."""

Pack = Callable[[object], bytes]
Known = Callable[[Mapping[str, Any]], bool]


class Odd(Protocol):
    """See `Surroundings`."""

    def __call__(self, fields: Sequence[Any], error: Exception | None = None, /) -> bytes | None:
        """The packed record of `fields`, or None when there is none."""


Slow = Callable[[bytes, BaseException, CellType], None]


class HotPath(Struct, frozen=True):
    """One recording call. `counters` are the indexes in `records.COUNTERS` under which its records are counted."""

    call: Callable[..., None]
    counters: tuple[int, ...]
    counted: CellType

    @property
    def count(self) -> int:
        """Records taken through this call so far."""
        count: int = self.counted.cell_contents
        return count


class Surroundings:
    """What all recording calls of one recorder work with."""

    def __init__(
        self,
        *,
        pack: Pack,
        known: Known,
        clock: Callable[[], int],
        lock: threading.RLock,
        odd: Odd,
        slow: Slow,
        steps: bool = STEPS,
    ) -> None:
        """`pack` may be called by anybody at any time, and `known` tells whether all keys of a map are harmless names.

        `odd` takes over when a record does not fit, is too large, or does not pack (it is given the error then): it
        gives the packed record, or None when there is none. `slow` takes over when it cannot be written; it is given
        the error and the cell in which the record is to be counted. Both raise the error again if it is none of ours.
        """
        self._locking = _UNLOCKED if steps else _LOCKED
        self.refuse = _refuse
        self.write, self.tell = CellType(_refuse), CellType(int)
        self.words, self.end = CellType(None), CellType(0)
        self._acquire, self._release = CellType(), CellType()
        self.lock(lock)
        self._others = {
            "clock": CellType(clock),
            "commit": CellType(self.commit),
            "known": CellType(known),
            "odd": CellType(odd),
            "pack": CellType(pack),
            "plain": CellType(PLAIN),
            "slow": CellType(slow),
            "tracked": CellType(gc.is_tracked),
        }

    def make(self, counters: tuple[int, ...], parameters: str, fields: str, fits: str) -> HotPath:
        """A call that takes `parameters` and records `fields`, directly if `fits`."""
        names: dict[str, Any] = {}
        source = _TEMPLATE.format(
            parameters=parameters, fields=fields, fits=fits, most=MAX_RECORD, end_at=END, **self._locking
        )
        exec(_compiled(source), {}, names)  # noqa: S102 - see above
        made = names["make"](*[None] * 16)
        count = CellType(0)
        cells = {
            **self._others,
            "acquire": self._acquire,
            "count": count,
            "counted": CellType(count),
            "end": self.end,
            "release": self._release,
            "tell": self.tell,
            "words": self.words,
            "write": self.write,
        }
        code: CodeType = made.__code__
        call = FunctionType(code, made.__globals__, "record", None, tuple(cells[name] for name in code.co_freevars))
        return HotPath(call, counters, count)

    def bind(self, half: Half) -> None:
        """Turn all calls to `half`, which is empty, before there are any."""
        self.write.cell_contents, self.tell.cell_contents = half.memory.write, half.memory.tell
        self.words.cell_contents, self.end.cell_contents = half.words, 0

    def unbind(self) -> None:
        """Turn all calls to nothing: they reach `slow` and no half."""
        self.write.cell_contents, self.tell.cell_contents = self.refuse, int
        self.words.cell_contents, self.end.cell_contents = None, 0

    def commit(self) -> None:
        """Store where the records of the active half end, as the calls do."""
        place, position = self.words.cell_contents, self.tell.cell_contents()
        if place is self.words.cell_contents and position > self.end.cell_contents:
            place[END] = self.end.cell_contents = position

    def lock(self, lock: threading.RLock) -> None:
        """Take this lock from now on, where there is one."""
        self._acquire.cell_contents, self._release.cell_contents = lock.acquire, lock.release

    def unlock(self) -> None:
        """In a forked child, whose lock may be held for ever by a thread that is no more: do without."""
        self._acquire.cell_contents = self._release.cell_contents = _nothing


@lru_cache(maxsize=64)
def _compiled(source: str) -> CodeType:
    """A session's calls are those of the one before; only emitters differ, by their number and fields."""
    return compile(source, "<mailboat recording call>", "exec")


def _fit_of_attributes() -> str:
    """Whether `attributes` are plain values under known names.

    CPython up to 3.13 documents (see `gc.is_tracked`) that it does not track maps without any containers, which is by
    far the cheapest way to tell. What is untracked and not of `PLAIN` either, as dates are, has no names in it.
    """
    lazily = not gc.is_tracked({"plain": "text"}) and gc.is_tracked({"holding": [{}]})
    plain = "not tracked(attributes)" if lazily else "plain.issuperset(map(type, attributes.values()))"
    return f"{plain} and known(attributes)"


_FIT: Final = _fit_of_attributes()


def feature(around: Surroundings, counters: tuple[int, ...]) -> HotPath:
    """Record a feature: ``call(name, /, **attributes)``."""
    return around.make(counters, "name, /, **attributes", f"{Kind.FEATURE:d}, clock(), name, attributes", _FIT)


def attributed(around: Surroundings, counters: tuple[int, ...], kind: Kind, *, plain: bool = False) -> HotPath:
    """Record any other kind that has attributes: ``call(name, attributes, *fields)`` with the fields of `kind` after
    those. `plain`: these may be anything, and have to be looked at; otherwise they are made by mailboat.
    """
    fits = f"{_FIT} and plain.issuperset(map(type, fields))" if plain else _FIT
    return around.make(counters, "name, attributes, *fields", f"{kind:d}, clock(), name, attributes, *fields", fits)


def declaration(around: Surroundings, counters: tuple[int, ...]) -> HotPath:
    """Record the declaration of an emitter: ``call(name, fields, number, kind)``."""
    return around.make(counters, "*fields", f"{Kind.SCHEMA:d}, clock(), *fields", "True")


def emitter(around: Surroundings, counters: tuple[int, ...], schema: Schema) -> HotPath:
    """Record by position: ``call(value, value, ...)`` with as many values as the schema has fields.

    A value may not be left out: the call raises `TypeError` like any function called with too few or too many
    arguments. That is a mistake in the application's source, and the one exception that recording lets through.
    """
    values = "".join(f"v{at}, " for at in range(len(schema.fields)))
    parameters = f"{values}/" if values else ""
    fits = " and ".join(_fit_of_value(f"v{at}", field) for at, field in enumerate(schema.fields)) or "True"
    return around.make(counters, parameters, f"{Kind.POSITIONAL:d}, clock(), {schema.number:d}, {values}", fits)


def _fit_of_value(value: str, field: str) -> str:
    if names_secret(field):
        return "False"
    return f"type({value}) in {'(int, float)' if names_token(field) else 'plain'}"


def _refuse(*_: object) -> int:
    raise ValueError("nothing is being recorded")


def _nothing(*_: object) -> None:
    pass
