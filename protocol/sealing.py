"""The sealed store: what a session keeps on its machine can be read by its server alone.

A machine that records knows the server's public key and nothing else that opens anything. Whoever takes its disk sees
that sessions are there, when they ran and how much they recorded, and nothing of what they say.

Keys, from the outside in:

* The *server's key pair* (X25519). The public half is given to agents as text (``mbs_...``, with a checksum: what is
  sealed to a mistyped key is lost), the private half never leaves the server's data folder. Its *id* is the beginning
  of the SHA-256 of the public half. There may be several, so that keys can be changed: every box names its own.
* A *box* is something short for the server: an id of 8 bytes, then a sealed box of libsodium (X25519, XSalsa20 and
  Poly1305 with a sender's key made for this box and forgotten), whose content begins with what it is for and the
  session it belongs to. A box that was moved to another session, or another use, is refused.
* A *segment key*, 32 random bytes, made anew for each segment and boxed together with the segment's index: the *lock*.
  It lives in the memory of the recording process only. When that is dead nobody can add to its segments or read them,
  which is why recovery puts what it finds into a new segment with a key of its own.

A block of a sealed segment (`ENCODING_SEALED` in its header) has this payload, in place of a zstd frame::

    0x184D2A5D length                                     a skippable frame: ``zstd -dc`` passes over it
        lock:112 closed:i64 nonce:24 noted:u32            in the clear
        note:noted                                        a box with the installation, where the block names one
        ciphertext                                        XChaCha20-Poly1305 of the zstd frame with the records

*closed* is the monotonic clock when the block was made, so that recovery knows when a session was last alive. The
nonce is random (with 192 bits no two will ever be the same), so that a write that failed and is made again with other
records never uses one twice. Everything that stands before the ciphertext, and the block's header but for its
checksums, is authenticated with it: a block that was changed, cut, moved to another place or another segment does not
open, and costs itself alone. Each block carries the lock, so that a damaged preamble costs no block, as in any segment.

What stays in the clear is what it takes to route, to count and to recover: in the preamble the session's id, index,
start by both clocks, product, application, version, environment, agent, the flags test and anonymous, and the parent;
in headers and seal all numbers (records by kind and level, sizes, clocks). Everything else of `summary.Info` goes into
a box, and so does the installation. See `disclosure`.

What sealing does not do: hide sizes, times and counts; prove who wrote (anyone who has the public key can make a
segment); protect what is in memory.

The library (PyNaCl) is the extra ``mailboat[seal]`` and is imported only where something is sealed or opened.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Final, Self
from uuid import UUID

from msgspec import Struct

from mailboat.protocol.errors import ConfigError, KeyMissing, SealedError

SEALED_MAGIC: Final = 0x184D2A5D
PUBLIC_PREFIX: Final = "mbs_"
PRIVATE_PREFIX: Final = "mbx_"
KEY_BYTES: Final = 32
ID_BYTES: Final = 8

_CHECKSUM_BYTES: Final = 4
_NONCE_BYTES: Final = 24
_TAG_BYTES: Final = 16
_BOXED: Final = struct.Struct("<4s16s")
_KEY: Final = struct.Struct(f"<I{KEY_BYTES}s")
_BOX_OVERHEAD: Final = 48
"""Of libsodium's sealed box: a public key and a tag."""
LOCK_BYTES: Final = ID_BYTES + _BOX_OVERHEAD + _BOXED.size + _KEY.size
_FRAME: Final = struct.Struct("<II")
_HEAD: Final = struct.Struct(f"<{LOCK_BYTES}sq{_NONCE_BYTES}sI")
_MAX_UNLOCKED: Final = 4096

Entropy = Callable[[int], bytes]
"""Gives so many random bytes."""


class Purpose(Enum):
    """What a box is for."""

    KEY = b"key "
    INFO = b"info"
    INSTALLATION = b"inst"


def require_library(wanted_for: str) -> None:
    """Raise `ConfigError` when what seals is not installed; `wanted_for` begins the sentence."""
    try:
        import nacl.bindings  # noqa: PLC0415 - an extra, never imported unless used
        import nacl.public  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError(f"{wanted_for}: sealing needs PyNaCl: pip install 'mailboat[seal]'") from error


class PublicKey(Struct, frozen=True):
    """The half of a server's key pair that agents have."""

    raw: bytes

    @property
    def id(self) -> str:
        """Its name, 16 hexadecimal digits."""
        return hashlib.sha256(self.raw).digest()[:ID_BYTES].hex()

    @property
    def text(self) -> str:
        """The form in which it is handed on: ``mbs_...``."""
        return _to_text(PUBLIC_PREFIX, self.raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `text` gave; `ConfigError` for anything else."""
        return cls(_from_text(PUBLIC_PREFIX, text, "public"))

    def box(self, purpose: Purpose, session_id: str, content: bytes) -> bytes:
        """`content` for the holder of the private key alone."""
        from nacl.public import PublicKey as Key  # noqa: PLC0415
        from nacl.public import SealedBox  # noqa: PLC0415

        boxed = _BOXED.pack(purpose.value, UUID(session_id).bytes) + content
        return bytes.fromhex(self.id) + SealedBox(Key(self.raw)).encrypt(boxed)


class PrivateKey(Struct, frozen=True):
    """The half that the server keeps."""

    raw: bytes

    def __repr__(self) -> str:
        """Without the key: what is shown ends up in logs."""
        return "PrivateKey(...)"

    @property
    def text(self) -> str:
        """The form in which it is kept in a file: ``mbx_...``."""
        return _to_text(PRIVATE_PREFIX, self.raw)

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `text` gave; `ConfigError` for anything else, without repeating it."""
        return cls(_from_text(PRIVATE_PREFIX, text, "private"))

    @property
    def public(self) -> PublicKey:
        """The other half."""
        from nacl.public import PrivateKey as Key  # noqa: PLC0415

        return PublicKey(bytes(Key(self.raw).public_key))


def _to_text(prefix: str, raw: bytes) -> str:
    checked = raw + hashlib.sha256(prefix.encode() + raw).digest()[:_CHECKSUM_BYTES]
    return prefix + base64.urlsafe_b64encode(checked).decode()


def _from_text(prefix: str, text: str, which: str) -> bytes:
    raw = b""
    if text.startswith(prefix) and text.isascii():
        try:
            raw = base64.b64decode(text[len(prefix) :], altchars=b"-_", validate=True)[:KEY_BYTES]
        except binascii.Error:
            raw = b""
    if len(raw) != KEY_BYTES or _to_text(prefix, raw) != text:
        raise ConfigError(f"that is no {which} key, or one that was mistyped: it begins with {prefix}")
    return raw


class SealedTo(Struct, frozen=True):
    """How a segment is sealed: `to` which public key, with which `lock` (see `sealing`); `info` is a box with what
    the preamble's own `info` leaves out.
    """

    to: bytes
    lock: bytes = b""
    info: bytes = b""

    def to_map(self) -> dict[str, bytes]:
        """As it stands in a preamble."""
        return {"to": self.to, "lock": self.lock, "info": self.info}

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> SealedTo:
        """What `to_map` made. Raises `KeyError`, `TypeError` and `ValueError`."""
        to, lock, info = (memoryview(values[name]).tobytes() for name in ("to", "lock", "info"))
        if len(to) != KEY_BYTES:
            raise ValueError(f"a public key of {len(to)} bytes")
        return cls(to, lock, info)


class Note(Struct, frozen=True):
    """What a sealed block says of itself beside its header: the monotonic clock when it was made, in nanoseconds, and
    the installation when its records name one (or `boxed`, if that was done before).
    """

    closed: int = 0
    installation: Mapping[str, Any] | None = None
    boxed: bytes = b""


class SegmentKey(Struct, frozen=True):
    """What opens the blocks of one segment."""

    session_id: str
    index: int
    secret: bytes

    def __repr__(self) -> str:
        """Without the key: what is shown ends up in logs."""
        return f"SegmentKey(session_id={self.session_id!r}, index={self.index})"


Unlock = Callable[[bytes], SegmentKey]
"""Gives the key of a lock, or raises `SealedError`."""


def unlocks_only(unlock: Unlock, session_id: str, index: int) -> Unlock:
    """`unlock` for the blocks of one segment: the key of any other is refused."""

    def checked(lock: bytes) -> SegmentKey:
        key = unlock(lock)
        if (key.session_id, key.index) != (session_id, index):
            raise SealedError(f"the block belongs to segment {key.index} of session {key.session_id}")
        return key

    return checked


class Keyring:
    """The private keys of a server. Safe in threads."""

    def __init__(self, keys: Iterable[PrivateKey]) -> None:
        """Raises `ConfigError` when there is a key and the library is not installed."""
        known = list(keys)
        if known:
            require_library("a private key is given")
        self._keys = {key.public.id: key for key in known}
        self._unlocked: dict[bytes, SegmentKey] = {}

    def __contains__(self, key_id: str) -> bool:
        """Whether the private key of that id is here."""
        return key_id in self._keys

    def open(self, box: bytes, purpose: Purpose, session_id: str | None) -> bytes:
        """The content of a box made for `purpose` and the session (None: any). Raises `SealedError`."""
        return self._open(box, purpose, session_id)[1]

    def unlock(self, lock: bytes) -> SegmentKey:
        """The key in a segment's lock. Raises `SealedError`."""
        known = self._unlocked.get(lock)
        if known is None:
            session_id, content = self._open(lock, Purpose.KEY, None)
            if len(content) != _KEY.size:
                raise SealedError("a lock does not hold a key")
            known = SegmentKey(session_id, *_KEY.unpack(content))
            if len(self._unlocked) >= _MAX_UNLOCKED:
                self._unlocked.clear()
            self._unlocked[lock] = known
        return known

    def _open(self, box: bytes, purpose: Purpose, session_id: str | None) -> tuple[str, bytes]:
        key_id = key_of(box)
        key = self._keys.get(key_id)
        if key is None:
            raise KeyMissing(f"it is sealed to the key {key_id}, which is not here")
        from nacl.exceptions import CryptoError  # noqa: PLC0415
        from nacl.public import PrivateKey as Key  # noqa: PLC0415
        from nacl.public import SealedBox  # noqa: PLC0415

        try:
            boxed = SealedBox(Key(key.raw)).decrypt(box[ID_BYTES:])
        except (CryptoError, ValueError, TypeError) as error:
            raise SealedError(f"a box does not open with the key {key_id}: it was changed") from error
        if len(boxed) < _BOXED.size:
            raise SealedError("a box holds less than it must")
        made_for, session = _BOXED.unpack_from(boxed)
        found = str(UUID(bytes=session))
        if made_for != purpose.value or session_id not in (None, found):
            raise SealedError(f"a box was made for another use, or for the session {found}")
        return found, boxed[_BOXED.size :]


def key_of(box: bytes) -> str:
    """The id of the key that a box is made for."""
    return box[:ID_BYTES].hex()


class Sealer:
    """Seals the blocks of one segment; made by the process that writes it, and never stored."""

    def __init__(self, to: PublicKey, session_id: str, index: int, entropy: Entropy) -> None:
        """Makes the segment's key."""
        self._entropy = entropy
        self.key = SegmentKey(session_id, index, entropy(KEY_BYTES))
        self.lock = to.box(Purpose.KEY, session_id, _KEY.pack(index, self.key.secret))

    def seal(self, frame: bytes, bound: bytes, closed: int, note: bytes) -> bytes:
        """The payload of a block: `frame` hidden, `bound` (of its header), `closed` and `note` authenticated."""
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt  # noqa: PLC0415

        nonce = self._entropy(_NONCE_BYTES)
        head = _HEAD.pack(self.lock, closed, nonce, len(note)) + note
        hidden = encrypt(frame, bound + head, nonce, self.key.secret)
        return _FRAME.pack(SEALED_MAGIC, len(head) + len(hidden)) + head + hidden

    def unlock(self, lock: bytes) -> SegmentKey:
        """The key of its own lock; see `Unlock`."""
        if lock != self.lock:
            raise SealedError("the block belongs to another segment")
        return self.key


def sealed_length(frame: int, note: int) -> int:
    """The length of the payload for a zstd frame and a note of so many bytes."""
    return _FRAME.size + _HEAD.size + note + frame + _TAG_BYTES


class SealedPayload(Struct, frozen=True):
    """A block's payload as it stands in the file; only `head` and what is in it can be read."""

    lock: bytes
    closed: int
    nonce: bytes
    note: bytes
    head: bytes
    hidden: bytes

    @classmethod
    def read(cls, payload: bytes) -> SealedPayload:
        """Take a payload apart; `SealedError` when it is none."""
        if len(payload) < _FRAME.size + _HEAD.size + _TAG_BYTES:
            raise SealedError("a sealed block is cut short")
        magic, length = _FRAME.unpack_from(payload)
        lock, closed, nonce, noted = _HEAD.unpack_from(payload, _FRAME.size)
        end = _FRAME.size + _HEAD.size + noted
        if magic != SEALED_MAGIC or length != len(payload) - _FRAME.size or end + _TAG_BYTES > len(payload):
            raise SealedError("a sealed block does not have the form of one")
        note = payload[end - noted : end]
        return cls(lock, closed, nonce, note, payload[_FRAME.size : end], payload[end:])

    def open(self, bound: bytes, key: SegmentKey) -> bytes:
        """The zstd frame inside; `SealedError` when anything of the block is not as it was written."""
        from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt  # noqa: PLC0415
        from nacl.exceptions import CryptoError  # noqa: PLC0415

        try:
            return decrypt(self.hidden, bound + self.head, self.nonce, key.secret)
        except CryptoError as error:
            raise SealedError("a sealed block does not open: it was changed, or moved") from error
