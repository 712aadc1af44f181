"""The recording calls themselves: functions made from one template, so that each does exactly the same and nothing
more.

Closures are the fastest thing Python has for this: every name is a cell, found without a look-up. `*args` and
attribute access would cost a fifth of the whole call, hence the template: each call gets the very parameters that it
takes. Its source is made of the fixed text below, kinds and numbered parameters; nothing that an application says
ever becomes part of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final

from mailboat.protocol.records import Kind, Schema

_TEMPLATE: Final = """
def make(pack, clock, acquire, release, slow, torn):
    write = tell = words = None
    count = 0

    def call({parameters}):
        nonlocal count
        acquire()
        try:
            write(pack(({fields})))
            words[4] = tell()
            count += 1
        except Exception:
            if slow(({fields})):
                count += 1
        except BaseException:
            torn()
            raise
        finally:
            release()

    def bind(new_write, new_tell, new_words):
        nonlocal write, tell, words, count
        write, tell, words, count = new_write, new_tell, new_words, 0

    def relock(new_acquire, new_release):
        nonlocal acquire, release
        acquire, release = new_acquire, new_release

    return call, bind, relock, lambda: count
"""

Pack = Callable[[object], bytes]
Slow = Callable[[Sequence[Any]], bool]


@dataclass(frozen=True, slots=True)
class HotPath:
    """One recording call. `bind(write, tell, words)` points it at a half and starts its `count` at zero."""

    kind: int
    call: Callable[..., None]
    bind: Callable[[Any, Any, Any], None]
    relock: Callable[[Callable[[], Any], Callable[[], None]], None]
    count: Callable[[], int]

    @property
    def code(self) -> CodeType:
        """The code that runs while this call is under way."""
        code: CodeType = self.call.__code__
        return code


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a recording call works with; `slow` takes over when anything is out of the ordinary, `torn` when it is
    torn away.
    """

    pack: Pack
    clock: Callable[[], int]
    lock: threading.RLock
    slow: Slow
    torn: Callable[[], None]

    def make(self, kind: int, parameters: str, fields: str) -> HotPath:
        """A call that takes `parameters` and records `fields`."""
        names: dict[str, Any] = {}
        exec(_TEMPLATE.format(parameters=parameters, fields=fields), {}, names)  # noqa: S102 - see the module's docstring
        made = names["make"](self.pack, self.clock, self.lock.acquire, self.lock.release, self.slow, self.torn)
        call, bind, relock, count = made
        return HotPath(kind, call, bind, relock, count)


def feature(around: Surroundings) -> HotPath:
    """Record a feature: ``call(name, /, **attributes)``."""
    return around.make(Kind.FEATURE, "name, /, **attributes", f"{Kind.FEATURE:d}, clock(), name, attributes")


def plain(kind: Kind, around: Surroundings) -> HotPath:
    """Record any other kind: ``call(*fields)`` with the fields of `kind` after its time."""
    return around.make(kind, "*fields", f"{kind:d}, clock(), *fields")


def emitter(schema: Schema, around: Surroundings) -> HotPath:
    """Record by position: ``call(value, value, ...)`` with as many values as the schema has fields.

    A value may not be left out: the call raises `TypeError` like any function called with too few or too many
    arguments. That is a mistake in the application's source, and the one exception that recording lets through.
    """
    values = "".join(f"v{at}, " for at in range(len(schema.fields)))
    parameters = f"{values}/" if values else ""
    return around.make(schema.kind, parameters, f"{Kind.POSITIONAL:d}, clock(), {schema.number:d}, {values}")
