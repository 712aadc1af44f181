"""Sessions whose details people want after all, though the plan had declined them.

The wish is kept in the catalog's notes, one list for a product, until the session is here or is rejected. Each reply to
an agent of the product names what is still wanted: whoever kept the session offers it again, and it is taken whatever
the plan says of details.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from mailboat.protocol.ids import is_canonical
from mailboat.server.catalog import Catalog, ProductRow

MOST: Final = 100
"""Sessions of one product that may be wanted at a time: each agent is told all of them."""


async def wanted(catalog: Catalog, product: str) -> tuple[str, ...]:
    """The sessions of a product that are wanted after all, the latest wish last."""
    return _sessions(await catalog.note(_name(product)))


def product_and_wished(catalog: Catalog, product: str) -> tuple[ProductRow | None, tuple[str, ...]]:
    """A product, None if there is none of that name, and its sessions that are wanted after all. Blocks."""
    row, note = catalog.product_and_note(product, _name(product))
    return row, _sessions(note)


async def want(catalog: Catalog, product: str, session_id: str) -> bool:
    """Want a session; False when as many as may be are wanted already."""
    so_far = await wanted(catalog, product)
    if session_id not in so_far:
        if len(so_far) >= MOST:
            return False
        await catalog.put_note(_name(product), json.dumps([*so_far, session_id]))
    return True


async def settle(catalog: Catalog, product: str, settled: Iterable[str]) -> None:
    """These sessions are here, or never will be."""
    done = frozenset(settled)
    so_far = await wanted(catalog, product)
    left = [each for each in so_far if each not in done]
    if len(left) < len(so_far):
        await catalog.put_note(_name(product), json.dumps(left))


def _sessions(note: str | None) -> tuple[str, ...]:
    return tuple(filter(is_canonical, json.loads(note))) if note else ()


def _name(product: str) -> str:
    return f"wanted/{product}"
