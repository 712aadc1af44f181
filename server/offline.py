"""A server's catalog for commands: opened on its folder, whether the server runs meanwhile or not.

SQLite lets both write in turn, and the server asks the catalog again within `ServerConfig.key_cache` seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from mailboat.server.catalog import Catalog
from mailboat.server.folder import CATALOG_FILE, served
from mailboat.server.sqlite_catalog import SqliteCatalog

T = TypeVar("T")


def with_catalog(data: Path, act: Callable[[Catalog], Awaitable[T]]) -> T:
    """What `act` gives on the catalog of the server's folder `data`. Blocks; not for an event loop.

    Raises `ConfigError` when `data` is no server's folder, `CatalogError` when its catalog cannot be used.
    """
    served(data)
    return asyncio.run(_with(SqliteCatalog(data / CATALOG_FILE), act))


async def _with(catalog: SqliteCatalog, act: Callable[[Catalog], Awaitable[T]]) -> T:
    await catalog.open()
    try:
        return await act(catalog)
    finally:
        await catalog.close()
