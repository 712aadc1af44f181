"""The recording calls themselves: functions made from one template, so that each does exactly the same and nothing
more.

Closures are the fastest thing Python has for this: every name is a cell, found without a look-up. `*args` and
attribute access would cost a fifth of the whole call, hence the template: each call gets the very parameters that it
takes. Its source is made of the fixed text below, kinds and numbered parameters; nothing that an application says
ever becomes part of it.

There is no lock. The interpreter lets another thread run, calls a signal handler or a finalizer, and raises an
exception from outside at the entry of a Python function, after the call of a C function and when a loop jumps back,
and nowhere else; what stands between two such places is one step. All calls of one recorder share their cells (but
for the count of each), so that turning to another half is one step, too: `Surroundings` shows the four cells for it.
Line by line:

* The packer is taken out of its cell for the time of packing. Whoever records meanwhile finds the spare one there:
  another thread, a signal handler, or the values being packed. A packer that is entered twice mixes two records. (Two
  threads may so leave the spare one behind, which is slower; `restore_packer` is called once a half.)
* ``count`` and ``write`` are one step: of every half it is known what it holds. `ValueError` is how a mapping says that
  it has no room; any other exception came in after the step, and the record is there.
* Between ``tell`` and the last line others may have recorded: then the end that they have stored is the larger one. Or
  the calls have been turned to another half: then ``words`` is another object, even if the half is the same again.

Where other interpreters, or builds without the interpreter lock, know no such steps, a lock is put around them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any, Final

from mailboat.agent.journal import Half
from mailboat.protocol.records import Kind, Schema

_TEMPLATE: Final = """
def make(acquire, clock, commit, count, counted, end, odd, pack, release, slow, spare, tell, words, write):
    def call({parameters}):
        nonlocal count, end, pack
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
            {acquire}
            count += 1; write(packed)
            place = words
            now = tell()
            if place is words and now > end: place[4] = end = now
        except ValueError as error:
            count -= 1
            slow(packed, error, ({fields}), counted)
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

Pack = Callable[[object], bytes]
Odd = Callable[[Sequence[Any], BaseException], bytes | None]
Slow = Callable[[bytes, BaseException, Sequence[Any], CellType], None]


@dataclass(frozen=True, slots=True)
class HotPath:
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
        spare: Pack,
        clock: Callable[[], int],
        lock: threading.RLock,
        odd: Odd,
        slow: Slow,
        steps: bool = STEPS,
    ) -> None:
        """`spare` packs while `pack` is in use, and may be used by any number of callers at once.

        `odd` takes over when a record does not pack: it gives the packed record, or None when there is none. `slow`
        takes over when it cannot be written; it is given the cell in which the record is to be counted. Both get the
        error, and raise it again if it is none of ours.
        """
        self._locking = _UNLOCKED if steps else _LOCKED
        self.refuse = _refuse
        self.write, self.tell = CellType(_refuse), CellType(int)
        self.words, self.end = CellType(None), CellType(0)
        self._pack, self._spare = CellType(pack if steps else spare), CellType(spare)
        self._acquire, self._release = CellType(), CellType()
        self.lock(lock)
        self._others = {
            "clock": CellType(clock),
            "commit": CellType(self.commit),
            "odd": CellType(odd),
            "slow": CellType(slow),
        }

    def make(self, counters: tuple[int, ...], parameters: str, fields: str) -> HotPath:
        """A call that takes `parameters` and records `fields`."""
        names: dict[str, Any] = {}
        exec(_TEMPLATE.format(parameters=parameters, fields=fields, **self._locking), {}, names)  # noqa: S102 - see above
        made = names["make"](*[None] * 14)
        count = CellType(0)
        cells = {
            **self._others,
            "acquire": self._acquire,
            "count": count,
            "counted": CellType(count),
            "end": self.end,
            "pack": self._pack,
            "release": self._release,
            "spare": self._spare,
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
            place[4] = self.end.cell_contents = position

    def lock(self, lock: threading.RLock) -> None:
        """Take this lock from now on, where there is one."""
        self._acquire.cell_contents, self._release.cell_contents = lock.acquire, lock.release

    def unlock(self) -> None:
        """In a forked child, whose lock may be held for ever by a thread that is no more: do without."""
        self._acquire.cell_contents = self._release.cell_contents = _nothing

    def repack(self, pack: Pack) -> None:
        """Pack with another packer from now on."""
        self._pack.cell_contents = pack if self._locking is _UNLOCKED else self._spare.cell_contents

    def restore_packer(self, make: Callable[[], Pack]) -> None:
        """Pack with a new packer from now on if the spare one was left in its place."""
        if self._pack.cell_contents is self._spare.cell_contents:
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
