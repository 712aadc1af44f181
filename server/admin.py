"""The admin API: products with their plans, and keys, under ``/api/v1``; what there is stands in `_OPERATIONS`.

All but looking at products and deletions wants an admin's key. The fields of a plan are told in `policy`.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web
from msgspec.structs import asdict

from mailboat.protocol.errors import Code, ConfigError
from mailboat.server import products
from mailboat.server.catalog import KeyRow, ProductRow, Role
from mailboat.server.context import CATALOG, CLOCK, ProblemError
from mailboat.server.keys import make_key
from mailboat.server.operations import Asked, Operation, add_operations, answered
from mailboat.server.parameters import PRODUCT
from mailboat.server.policy import Details
from mailboat.server.shapes import COUNT, NUMBER, SHARE, TEXT, TIME, Shape, by_name, made_of, maybe, one_of, some

# -- products ----------------------------------------------------------------------------------------------------------


async def list_products(asked: Asked) -> web.StreamResponse:
    """All products; a reader's key sees its own."""
    catalog, now = asked.app[CATALOG], asked.app[CLOCK]()
    rows = [row for row in await catalog.products() if asked.principal.reaches(row.name)]
    return answered({"products": [await products.told(catalog, row, now) for row in rows]})


async def show_product(asked: Asked) -> web.StreamResponse:
    """One product, with its plan and what it has used of it.

    A product that the key does not reach is as one that is not there.
    """
    name = asked.request.match_info["product"]
    row = await asked.app[CATALOG].product(name) if asked.principal.reaches(name) else None
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"there is no product {name!r:.100} here")
    return await _told(asked, row)


async def put_product(asked: Asked) -> web.StreamResponse:
    """Make a product, or give it the plan in the body, all other fields as by default."""
    return await _changed(asked, await asked.body(), anew=True)


async def patch_product(asked: Asked) -> web.StreamResponse:
    """Change the fields of a product's plan that are in the body; null puts one back to its default."""
    changes, name = await asked.body(), asked.request.match_info["product"]
    if await asked.app[CATALOG].product(name) is None:
        raise ProblemError(Code.NOT_FOUND, f"there is no product {name!r:.100} here; PUT makes one")
    return await _changed(asked, changes, anew=False)


async def _changed(asked: Asked, changes: dict[str, Any], *, anew: bool) -> web.StreamResponse:
    name, now = asked.request.match_info["product"], asked.app[CLOCK]()
    try:
        row = await products.put_plan(asked.app[CATALOG], name, changes, now, anew=anew)
    except ConfigError as error:
        raise ProblemError(Code.BAD_REQUEST, str(error)) from error
    return await _told(asked, row)


async def _told(asked: Asked, row: ProductRow) -> web.Response:
    return answered(await products.told(asked.app[CATALOG], row, asked.app[CLOCK]()))


async def list_deletions(asked: Asked) -> web.StreamResponse:
    """What was deleted for its age, by day, the newest first."""
    rows = await asked.app[CATALOG].deletions(asked.product())
    return answered({"deletions": [asdict(row) for row in rows]})


# -- keys --------------------------------------------------------------------------------------------------------------


async def list_keys(asked: Asked) -> web.StreamResponse:
    """All keys, without their texts, which nobody has."""
    return answered({"keys": [_key_json(row) for row in await asked.app[CATALOG].keys()]})


async def create_key(asked: Asked) -> web.StreamResponse:
    """Make a key; the answer is the one time that its text can be seen."""
    wanted = await asked.body()
    for name in wanted:
        if name not in ("product", "role"):
            raise ProblemError(Code.BAD_REQUEST, f"{name:.80}: a key is made of product and role only")
    role = wanted.get("role", Role.AGENT)
    if role not in list(Role):
        raise ProblemError(Code.BAD_REQUEST, f"role={role!r:.80}: one of {', '.join(Role)} is needed")
    try:
        key, row = make_key(wanted.get("product"), Role(role), asked.app[CLOCK]())
    except ConfigError as error:
        raise ProblemError(Code.BAD_REQUEST, str(error)) from error
    await asked.app[CATALOG].put_key(row)
    return answered({**_key_json(row), "key": key}, 201)


async def revoke_key(asked: Asked) -> web.StreamResponse:
    """Make a key useless; those who were let in by it are, for a few seconds."""
    key_id = asked.request.match_info["key_id"]
    if not await asked.app[CATALOG].revoke_key(key_id, asked.app[CLOCK]()):
        raise ProblemError(Code.NOT_FOUND, f"there is no key {key_id!r:.80} that is still of use")
    return web.Response(status=204)


def _key_json(row: KeyRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "product": row.product,
        "role": row.role.value,
        "created": row.created,
        "revoked": row.revoked,
    }


# -- the operations ------------------------------------------------------------------------------------------------

_PLAN: Final[dict[str, Shape]] = {
    "details": one_of(*Details),
    "share": SHARE,
    "versions": by_name(one_of(*Details)),
    "records_per_month": maybe(COUNT),
    "max_age_days": NUMBER,
    "history_days": maybe(NUMBER),
    "agents": some(TEXT),
    "oldest_agent": TEXT,
    "sync_interval": maybe(NUMBER),
    "backoff_floor": NUMBER,
    "max_rate": maybe(COUNT),
}
_DELETION: Final = made_of(
    {"product": TEXT, "day": TIME, "sessions": COUNT, "segments": COUNT, "records": COUNT, "bytes": COUNT}
)
_CHANGES: Final = made_of({}, {name: maybe(shape) for name, shape in _PLAN.items()})
_PRODUCT: Final = made_of({"product": TEXT, "created": TIME, "plan": made_of(_PLAN), "records_this_month": COUNT})
_KEY: Final[dict[str, Shape]] = {
    "id": TEXT,
    "product": maybe(TEXT),
    "role": one_of(*Role),
    "created": TIME,
    "revoked": maybe(TIME),
}
_NEW_KEY: Final = made_of({}, {"product": maybe(TEXT), "role": one_of(*Role)})
_ADMIN: Final = Role.ADMIN
_BODY: Final = (413, 415)

_OPERATIONS: Final = (
    Operation("GET", "/api/v1/products", list_products, made_of({"products": some(_PRODUCT)})),
    Operation("GET", "/api/v1/products/{product}", show_product, _PRODUCT, refusals=(404,)),
    Operation("PUT", "/api/v1/products/{product}", put_product, _PRODUCT, role=_ADMIN, body=_CHANGES, refusals=_BODY),
    Operation(
        "PATCH",
        "/api/v1/products/{product}",
        patch_product,
        _PRODUCT,
        role=_ADMIN,
        body=_CHANGES,
        refusals=(404, *_BODY),
    ),
    Operation("GET", "/api/v1/deletions", list_deletions, made_of({"deletions": some(_DELETION)}), (PRODUCT,)),
    Operation("GET", "/api/v1/keys", list_keys, made_of({"keys": some(made_of(_KEY))}), role=_ADMIN),
    Operation(
        "POST",
        "/api/v1/keys",
        create_key,
        made_of({**_KEY, "key": TEXT}),
        role=_ADMIN,
        body=_NEW_KEY,
        refusals=_BODY,
        status=201,
    ),
    Operation("DELETE", "/api/v1/keys/{key_id}", revoke_key, None, role=_ADMIN, refusals=(404,), status=204),
)


def add_routes(app: web.Application) -> None:
    """Add the routes."""
    add_operations(app, _OPERATIONS)
