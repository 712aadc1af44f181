"""The recording calls themselves: functions made from one template, so that each does exactly the same and nothing
more.

Closures are the fastest thing Python has for this: every name is a cell, found without a look-up. `*args` and
attribute access would cost a fifth of the whole call, hence the template: each call gets the very parameters that it
takes. Its source is made of the fixed text below, kinds and numbered parameters; nothing that an application says
ever becomes part of it.

All calls of one recorder share their cells (but for the count of each), so that one assignment turns all of them to
another half at once: no call can be caught between two.

What makes the template safe, line by line. A signal handler, a finalizer or an exception from another thread comes in
only where the interpreter looks for them: at the entry of a Python function, and after a call.

* The packer is taken out of its cell for the time of packing. Whoever records meanwhile, out of a signal handler or
  out of the values that are being packed, finds the spare one there: a packer that is entered twice mixes two records.
  (Two threads may so leave the spare one behind, which is slower; `restore_packer` is called once a half.) Packing
  happens outside the lock, since values may run the host's own code, which may wait for another thread that records.
* ``acquire`` stands inside the ``try``: an exception that comes just after it must find the way to ``release``.
* ``place`` is looked up before ``tell``: should a signal handler that records come after ``tell`` and turn to another
  half, the end of this half is not stored with that one.
* Nothing can come between the last line of the ``try`` and ``release``, since there is no call between them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any, Final

from mailboat.agent.journal import Half
from mailboat.protocol.records import Kind, Schema

_TEMPLATE: Final = """
def make(acquire, clock, count, odd, pack, release, slow, spare, tell, words, write):
    def call({parameters}):
        nonlocal count, pack
        mine, pack = pack, spare
        try:
            packed = mine(({fields}))
        except BaseException as error:
            pack = mine
            packed = odd(({fields}), error)
            if packed is None:
                return
        else:
            pack = mine
        try:
            acquire()
            write(packed)
            place = words
            place[4] = tell()
            count += 1
        except BaseException as error:
            try:
                if slow(packed, error, ({fields})):
                    count += 1
            finally:
                release()
        else:
            release()
    return call
"""

Pack = Callable[[object], bytes]
Odd = Callable[[Sequence[Any], BaseException], bytes | None]
Slow = Callable[[bytes, BaseException, Sequence[Any]], bool]


@dataclass(frozen=True, slots=True)
class HotPath:
    """One recording call. `counters` are the indexes in `records.COUNTERS` under which its records are counted."""

    call: Callable[..., None]
    counters: tuple[int, ...]
    _count: CellType

    @property
    def count(self) -> int:
        """Records taken through this call so far."""
        count: int = self._count.cell_contents
        return count

    @property
    def code(self) -> CodeType:
        """The code that runs while this call is under way."""
        code: CodeType = self.call.__code__
        return code


class Surroundings:
    """What all recording calls of one recorder work with."""

    def __init__(
        self,
        *,
        pack: Pack,
        spare: Pack,
        clock: Callable[[], int],
        lock: threading.RLock,
        odd: Odd,
        slow: Slow,
    ) -> None:
        """`spare` packs while `pack` is in use, and may be used by any number of callers at once.

        `odd` takes over, without the lock, when a record does not pack: it gives the packed record, or None when there
        is none. `slow` takes over, under the lock, when it cannot be written: True if it has seen to that. Both get
        the error, and raise it again if it is none of ours.
        """
        self._cells = {
            "acquire": CellType(lock.acquire),
            "clock": CellType(clock),
            "odd": CellType(odd),
            "pack": CellType(pack),
            "release": CellType(lock.release),
            "slow": CellType(slow),
            "spare": CellType(spare),
            "tell": CellType(_refuse),
            "words": CellType(None),
            "write": CellType(_refuse),
        }

    def make(self, counters: tuple[int, ...], parameters: str, fields: str) -> HotPath:
        """A call that takes `parameters` and records `fields`."""
        names: dict[str, Any] = {}
        exec(_TEMPLATE.format(parameters=parameters, fields=fields), {}, names)  # noqa: S102 - see the module's docstring
        made = names["make"](*[None] * 11)
        count = CellType(0)
        cells = {**self._cells, "count": count}
        closure = tuple(cells[name] for name in made.__code__.co_freevars)
        call = FunctionType(made.__code__, made.__globals__, "record", None, closure)
        return HotPath(call, counters, count)

    # There is no call between the assignments below, hence nothing that could come between them.

    def bind(self, half: Half) -> None:
        """Turn all calls to `half`."""
        write, tell, words = half.memory.write, half.memory.tell, half.words
        cells = self._cells
        cells["write"].cell_contents, cells["tell"].cell_contents, cells["words"].cell_contents = write, tell, words

    def unbind(self) -> None:
        """Turn all calls to nothing: they reach `slow` and no half."""
        cells = self._cells
        cells["write"].cell_contents, cells["tell"].cell_contents = _refuse, _refuse
        cells["words"].cell_contents = None

    def unlock(self) -> None:
        """In a forked child, whose lock may be held for ever by a thread that is no more: do without."""
        self._cells["acquire"].cell_contents = self._cells["release"].cell_contents = _nothing

    def repack(self, pack: Pack) -> None:
        """Pack with another packer from now on."""
        self._cells["pack"].cell_contents = pack

    def restore_packer(self, make: Callable[[], Pack]) -> None:
        """Pack with a new packer from now on if the spare one was left in its place."""
        if self._cells["pack"].cell_contents is self._cells["spare"].cell_contents:
            self.repack(make())


def feature(around: Surroundings, counters: tuple[int, ...]) -> HotPath:
    """Record a feature: ``call(name, /, **attributes)``."""
    return around.make(counters, "name, /, **attributes", f"{Kind.FEATURE:d}, clock(), name, attributes")


def plain(around: Surroundings, counters: tuple[int, ...], kind: Kind) -> HotPath:
    """Record any other kind: ``call(*fields)`` with the fields of `kind` after its time."""
    return around.make(counters, "*fields", f"{kind:d}, clock(), *fields")


def emitter(around: Surroundings, counters: tuple[int, ...], schema: Schema) -> HotPath:
    """Record by position: ``call(value, value, ...)`` with as many values as the schema has fields.

    A value may not be left out: the call raises `TypeError` like any function called with too few or too many
    arguments. That is a mistake in the application's source, and the one exception that recording lets through.
    """
    values = "".join(f"v{at}, " for at in range(len(schema.fields)))
    parameters = f"{values}/" if values else ""
    return around.make(counters, parameters, f"{Kind.POSITIONAL:d}, clock(), {schema.number:d}, {values}")


def _refuse(*_: object) -> int:
    raise ValueError("nothing is being recorded")


def _nothing(*_: object) -> None:
    pass
