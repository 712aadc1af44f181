"""Taking apart what a peer sent: each value is asked for by name, type and bound, and a wrong one is named by its
place.

A message is decoded as a whole (msgpack or JSON) and then read through `Fields`. Unknown members are ignored, so that
either side may learn to say more.

What is as it should be, as nearly all messages are, is read at once instead (`typed`), at a tenth of the cost, by the
types and bounds that the fields of its `Struct` have. These take nothing that `Fields` would refuse or change, so
whatever they do not take is read through `Fields` once more, which mends it or says what is wrong.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgpack
import msgspec
import zstandard
from msgspec import Meta

from mailboat.protocol.errors import WireError
from mailboat.protocol.ids import CANONICAL, canonical
from mailboat.protocol.limits import MAX_CONTAINERS, MAX_NEGOTIATION, MAX_PROPERTIES, MAX_PROPERTY_TEXT

MSGPACK_MEDIA_TYPE: Final = "application/vnd.mailboat+msgpack"
JSON_MEDIA_TYPE: Final = "application/json"
MEDIA_TYPES: Final = (MSGPACK_MEDIA_TYPE, JSON_MEDIA_TYPE)

_MAX_WINDOW: Final = 8 * 1024 * 1024

_STORED_HEAD: Final = b"\x28\xb5\x2f\xfd\xa0"
"""A zstd frame's magic, then: one segment, whose length follows in four bytes (RFC 8878, 3.1.1)."""
_STORED_BLOCK: Final = 128 * 1024
"""The largest block of a zstd frame."""

_FIRST_PIECE: Final = 256 * 1024
"""Bytes that are made room for at first; a body with riders hardly grows, so it has room for that and a little more."""

DIGEST: Final = 64
"""Characters of a SHA-256 in hex."""

MOST: Final = 2**63 - 1
"""The largest whole number of a message."""

T = TypeVar("T")

Digest: TypeAlias = Annotated[str, Meta(max_length=DIGEST)]
Text: TypeAlias = Annotated[str, Meta(max_length=MAX_PROPERTY_TEXT)]
Id: TypeAlias = Annotated[str, Meta(pattern=rf"\A{CANONICAL}\Z")]
Whole: TypeAlias = Annotated[int, Meta(ge=0, le=MOST)]
Number: TypeAlias = Annotated[float, Meta(ge=0.0, le=1e15)]
Scalar: TypeAlias = bool | int | float | str | None
Scalars: TypeAlias = Annotated[Mapping[str, Scalar], Meta(max_length=MAX_PROPERTIES)]


class Untyped(Exception):
    """A message is not as its types have it, or what reads it by them is only being made; read through `Fields` it may
    still be one.
    """


def typed(kind: type[T], body: bytes) -> T:
    """What `pack` made of a `kind`; `Untyped` for anything else."""
    try:
        return _decoder(kind).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Untyped from error


def _decoder(kind: type[T]) -> msgspec.msgpack.Decoder[T]:
    """Made when first needed: an agent never reads what agents say. One at a time: msgspec (0.22) keeps what it has
    found out of a type beside the type before it is done, and a thread that comes upon half of that ends the process.

    `Untyped` while another one is being made. Nobody waits for that: whoever makes it may be a thread of the process
    that this one was forked from, and will never be done.
    """
    if kind not in _decoders:
        if not _making.acquire(blocking=False):
            raise Untyped
        try:
            _decoders[kind] = _decoders.get(kind) or msgspec.msgpack.Decoder(kind)
        finally:
            _making.release()
    return _decoders[kind]


_decoders: Final[dict[type, msgspec.msgpack.Decoder[Any]]] = {}
_making: Final = Lock()


def fitting(kind: type[T], values: object) -> T:
    """The same of what msgpack has given already; texts of JSON, which may be half a surrogate pair, are not for it."""
    _decoder(kind)  # or this would be where msgspec looks at the type for the first time
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Untyped from error


def pack(message: object) -> bytes:
    """`message`, a `Struct` or made of such, in msgpack: the same bytes as `encode` makes of its `plain` form."""
    return _pack(message)


_pack: Final = msgspec.msgpack.Encoder().encode


def plain(message: msgspec.Struct) -> dict[str, Any]:
    """A `Struct` as a map of plain values."""
    values: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes,))
    return values


def encode(message: object, media_type: str) -> bytes:
    """`message`, made of maps, sequences and scalars, in the encoding that `media_type` names."""
    if media_type == MSGPACK_MEDIA_TYPE:
        return bytes(msgpack.packb(message))
    return json.dumps(message, separators=(",", ":"), default=_base64).encode()


def _base64(value: object) -> str:
    """Bytes as JSON has them."""
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} has no place in a message")
    return base64.b64encode(value).decode()


def decode(body: bytes, media_type: str) -> object:
    """What `encode` made; `WireError` for anything else."""
    try:
        count = _Counted()
        if media_type == MSGPACK_MEDIA_TYPE:
            return msgpack.unpackb(body, strict_map_key=True, object_hook=count.each, list_hook=count.each)
        return json.loads(body, object_hook=count.each)  # its lists take two bytes at least, and no hook
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"the body is no {media_type}: {error}") from error


class _Counted:
    """Ends a decoding that makes too many containers, before they fill the memory."""

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def each(self, container: T) -> T:
        """Count one."""
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has more than {MAX_CONTAINERS} maps and lists")
        return container


def compress(body: bytes, stored: bytes | memoryview = b"") -> bytes:
    """`body` and then `stored` as zstd frames, to be sent with ``Content-Encoding: zstd``.

    `stored`, which is compressed already, becomes a frame of its own whose blocks are taken as they are (RFC 8878,
    3.1.1.2.2): to look for something in it that could be made smaller would cost more than all the rest.
    """
    frame = zstandard.ZstdCompressor(level=3).compress(body)
    return b"".join((frame, *_stored(memoryview(stored)))) if len(stored) else frame


def _stored(content: memoryview) -> Iterator[bytes | memoryview]:
    yield _STORED_HEAD
    yield len(content).to_bytes(4, "little")
    for at in range(0, len(content), _STORED_BLOCK):
        block = content[at : at + _STORED_BLOCK]
        last = at + len(block) == len(content)
        yield (last | len(block) << 3).to_bytes(3, "little")
        yield block


def decompress(body: bytes, limit: int = MAX_NEGOTIATION) -> bytes:
    """What `compress` made (or any frames), at most `limit` bytes; `WireError` for more, or for anything else."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    pieces, size, room = list[bytes](), 0, max(_FIRST_PIECE, len(body) + len(body) // 4)
    try:
        with decompressor.stream_reader(body, read_across_frames=True) as stream:
            while size <= limit and (piece := stream.read(min(room, limit + 1 - size))):
                pieces.append(piece)
                size += len(piece)
                room *= 2
    except zstandard.ZstdError as error:
        raise WireError(f"the body does not decompress: {error}") from error
    if size > limit:
        raise WireError(f"the body decompresses to more than {limit} bytes")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Fields:
    """The members of one map of a message."""

    def __init__(self, values: object, where: str) -> None:
        """`where` is the map's place in the message, for errors."""
        if not isinstance(values, dict):
            raise WireError(f"{where}: expected a map, got {type(values).__name__}")
        self._values: Mapping[str, Any] = values
        self._where = where

    def __contains__(self, name: str) -> bool:
        """Whether the member is there and not null."""
        return self._values.get(name) is not None

    def place(self, name: str) -> str:
        """The place of a member in the message."""
        return f"{self._where}.{name}"

    def text(self, name: str, default: str | None = None, limit: int = MAX_PROPERTY_TEXT) -> str:
        """A text of at most `limit` characters."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a text", value)
        if len(value) > limit:
            raise WireError(f"{self.place(name)}: a text of {len(value)} characters, at most {limit} are taken")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise WireError(f"{self.place(name)}: a text with half a surrogate pair, which nothing can encode")
        return value

    def whole(self, name: str, default: int | None = None, low: int = 0, high: int = MOST) -> int:
        """A whole number between `low` and `high`."""
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, f"a whole number from {low} to {high}", value)
        return value

    def number(self, name: str, default: float | None = None, low: float = 0.0, high: float = 1e15) -> float:
        """A number between `low` and `high`."""
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def flag(self, name: str, *, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def content(self, name: str) -> bytes:
        """Bytes; in JSON, base64."""
        value = self._get(name, None)
        if isinstance(value, bytes):
            return value
        try:
            return base64.b64decode(value if isinstance(value, str) else "?", validate=True)
        except ValueError as error:
            raise self._wrong(name, "bytes, or a text of base64", value) from error

    def id(self, name: str) -> str:
        """A canonical UUID."""
        return canonical(self._get(name, None), self.place(name))

    def mapping(self, name: str) -> dict[str, Any]:
        """A map with text keys; empty when the member is missing or null."""
        value = self._values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise self._wrong(name, "a map with text keys", value)
        return value

    def each(self, name: str, limit: int, read: Callable[[Fields], T]) -> tuple[T, ...]:
        """The maps of a list of at most `limit`, each read by `read`; empty when the member is missing or null."""
        values = self._values.get(name)
        if values is None:
            return ()
        if not isinstance(values, Sequence) or isinstance(values, str | bytes):
            raise self._wrong(name, "a list", values)
        if len(values) > limit:
            raise WireError(f"{self.place(name)}: a list of {len(values)}, at most {limit} are taken")
        return tuple(read(Fields(value, f"{self.place(name)}[{at}]")) for at, value in enumerate(values))

    def _get(self, name: str, default: object) -> object:
        value = self._values.get(name)
        if value is None:
            value = default
        if value is None:
            raise WireError(f"{self.place(name)}: is missing")
        return value

    def _wrong(self, name: str, expected: str, value: object) -> WireError:
        return WireError(f"{self.place(name)}: expected {expected}, got {value!r:.80}")
