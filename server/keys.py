"""Keys: made once, shown once, kept as a digest.

A key is ``mbk_`` and 256 random bits, so its plain SHA-256 is as good as any slower hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from pathlib import Path
from typing import Final

from aiohttp import web

from mailboat.protocol.errors import ConfigError
from mailboat.server.catalog import Catalog, KeyRow, Role
from mailboat.server.catalog_schema import bring_up_to_date
from mailboat.server.context import Principal
from mailboat.server.folder import CATALOG_FILE
from mailboat.server.products import product_name
from mailboat.server.sqlite_catalog import put_key
from mailboat.server.sqlite_engine import connect

PREFIX: Final = "mbk_"
_ENTROPY: Final = 32
_ID_DIGITS: Final = 12
_MAX_CACHED: Final = 10_000
_LONGEST_KEY: Final = 200


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def make_key(product: str | None, role: Role, now: float) -> tuple[str, KeyRow]:
    """A new key and the row to be kept of it. An admin's key has no product, all others need one: `ConfigError`.

    Who names a product with it means a key that reaches that product only, and is not to get one that reaches all.
    """
    if role is not Role.ADMIN:
        product = product_name(product)
    elif product is not None:
        raise ConfigError(f"product={product!r:.100}: a key of role admin reaches all products, so name none with it")
    key = PREFIX + secrets.token_urlsafe(_ENTROPY)
    digest = digest_of(key)
    return key, KeyRow(f"key-{digest.hex()[:_ID_DIGITS]}", digest, product, role, now)


def create_key(data: Path, product: str | None, role: Role = Role.AGENT) -> str:
    """Make a key in the server's folder `data`, which may be in use by a running server, or not be there yet.

    Blocks; not for an event loop. Raises `ConfigError` as `make_key` does, `CatalogError` when the catalog cannot be
    used.
    """
    key, row = make_key(product, role, time.time())
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    db = connect(data / CATALOG_FILE)
    try:
        bring_up_to_date(db)
        with db:
            put_key(db, row)
    finally:
        db.close()
    return key


class Keyring:
    """Who a key belongs to, remembered for a few seconds so that not every request asks the catalog."""

    def __init__(self, catalog: Catalog, lifetime: float) -> None:
        """`lifetime`: seconds for which an answer is believed."""
        self._catalog = catalog
        self._lifetime = lifetime
        self._known: dict[bytes, tuple[float, Principal]] = {}

    async def principal(self, key: str, now: float) -> Principal | None:
        """Who sent `key`; None when it is no valid key. `now` is monotonic seconds."""
        if not key.startswith(PREFIX) or len(key) > _LONGEST_KEY:
            return None
        digest = digest_of(key)
        until, known = self._known.get(digest, (0.0, None))
        if known is not None and now < until:
            return known
        row = await self._catalog.key(digest)
        if row is None or row.revoked is not None:
            self._known.pop(digest, None)
            return None
        principal = Principal(row.id, row.role, row.product)
        if len(self._known) >= _MAX_CACHED:
            self._known.clear()
        self._known[digest] = (now + self._lifetime, principal)
        return principal


KEYRING: Final = web.AppKey("keyring", Keyring)
