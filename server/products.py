"""Products and their plans: looked at and changed by name. Used by the admin API and by commands alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from mailboat.protocol.errors import ConfigError
from mailboat.server.catalog import Catalog, ProductRow
from mailboat.server.policy import Plan, month_of

MAX_PRODUCT: Final = 200
"""Characters of a product's name."""


def product_name(name: object) -> str:
    """`name`, if a product may have it; `ConfigError` otherwise."""
    usable = isinstance(name, str) and 0 < len(name) <= MAX_PRODUCT and name == name.strip() and name.isprintable()
    if not usable:
        raise ConfigError(
            f"product={name!r:.100}: a name of 1 to {MAX_PRODUCT} printable characters is needed, no blanks at its ends"
        )
    return str(name)


def changed(plan: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of `plan` with `changes`; null puts a field back to its default. `ConfigError` as `Plan.of`."""
    values = {**Plan.of(plan).values(), **changes}
    return Plan.of({name: value for name, value in values.items() if value is not None}).values()


async def put_plan(
    catalog: Catalog, name: str, changes: Mapping[str, Any], now: float, *, anew: bool = False
) -> ProductRow:
    """Make the product, or change its plan: the fields in `changes`, or (`anew`) all of them. `ConfigError`."""
    row = await catalog.product(product_name(name)) or ProductRow(name, now)
    row = replace(row, plan=changed({} if anew else row.plan, changes))
    await catalog.put_product(row)
    return row


async def told(catalog: Catalog, row: ProductRow, now: float) -> dict[str, Any]:
    """A product as plain values: its name, when it was made, its whole plan, and what it has used this month."""
    usage = await catalog.usage(row.name, month_of(now))
    plan = Plan.of(row.plan).values()
    return {"product": row.name, "created": row.created, "plan": plan, "records_this_month": usage.records}
