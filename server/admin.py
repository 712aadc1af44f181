"""The admin API: products with their plans, and keys. JSON in and out, under ``/api/v1``.

====================================  ============================================================================
``GET products``                      all products; a reader's key sees its own
``GET products/{product}``            one of them, with its plan and what it has used of it
``PUT products/{product}``            make it, or give it the plan in the body, all other fields as by default
``PATCH products/{product}``          change the fields in the body; null puts one back to its default
``GET deletions``                     what was deleted for its age, by day; `product`
``GET keys``                          all keys, without their texts, which nobody has
``POST keys``                         make one: ``{"product": ..., "role": "agent" | "reader" | "admin"}``; the answer
                                      is the one time that its text can be seen
``DELETE keys/{key_id}``              make one useless; those who were let in by it are, for a few seconds
====================================  ============================================================================

All but `GET` of products and deletions want an admin's key. The fields of a plan are told in `policy`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

from aiohttp import web

from mailboat.protocol.errors import Code, ConfigError
from mailboat.protocol.limits import KIB
from mailboat.server import products
from mailboat.server.bodies import read_whole
from mailboat.server.catalog import KeyRow, ProductRow, Role
from mailboat.server.context import CATALOG, CLOCK, CONFIG, ProblemError, require
from mailboat.server.keys import make_key
from mailboat.server.parameters import Parameters, product_of, reader

MAX_BODY: Final = 64 * KIB
"""Bytes of a plan as JSON: a hundred patterns of versions fit."""


def add_routes(app: web.Application) -> None:
    """Add the routes."""
    app.router.add_get("/api/v1/products", list_products)
    app.router.add_get("/api/v1/products/{product}", show_product)
    app.router.add_put("/api/v1/products/{product}", change_product)
    app.router.add_patch("/api/v1/products/{product}", change_product)
    app.router.add_get("/api/v1/deletions", list_deletions)
    app.router.add_get("/api/v1/keys", list_keys)
    app.router.add_post("/api/v1/keys", create_key)
    app.router.add_delete("/api/v1/keys/{key_id}", revoke_key)


# -- products ----------------------------------------------------------------------------------------------------------


async def list_products(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/products``."""
    principal = reader(request)
    Parameters(request, ())
    catalog, now = request.app[CATALOG], request.app[CLOCK]()
    rows = [row for row in await catalog.products() if principal.reaches(row.name)]
    return _json({"products": [await products.told(catalog, row, now) for row in rows]})


async def show_product(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/products/{product}``; a product that the key does not reach is as one that is not there."""
    principal = reader(request)
    Parameters(request, ())
    name = request.match_info["product"]
    row = await request.app[CATALOG].product(name) if principal.reaches(name) else None
    if row is None:
        raise ProblemError(Code.NOT_FOUND, f"there is no product {name!r:.100} here")
    return await _told(request, row)


async def change_product(request: web.Request) -> web.StreamResponse:
    """``PUT`` and ``PATCH /api/v1/products/{product}``."""
    require(request, Role.ADMIN)
    Parameters(request, ())
    name, catalog, now = request.match_info["product"], request.app[CATALOG], request.app[CLOCK]()
    whole = request.method == "PUT"
    changes = await _body(request)
    if not whole and await catalog.product(name) is None:
        raise ProblemError(Code.NOT_FOUND, f"there is no product {name!r:.100} here; PUT makes one")
    try:
        row = await products.put_plan(catalog, name, changes, now, anew=whole)
    except ConfigError as error:
        raise ProblemError(Code.BAD_REQUEST, str(error)) from error
    return await _told(request, row)


async def _told(request: web.Request, row: ProductRow) -> web.Response:
    return _json(await products.told(request.app[CATALOG], row, request.app[CLOCK]()))


async def list_deletions(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/deletions``: newest day first."""
    principal = reader(request)
    product = product_of(principal, Parameters(request, ("product",)).text("product"))
    rows = await request.app[CATALOG].deletions(product)
    return _json({"deletions": [asdict(row) for row in rows]})


# -- keys --------------------------------------------------------------------------------------------------------------


async def list_keys(request: web.Request) -> web.StreamResponse:
    """``GET /api/v1/keys``."""
    require(request, Role.ADMIN)
    Parameters(request, ())
    return _json({"keys": [_key_json(row) for row in await request.app[CATALOG].keys()]})


async def create_key(request: web.Request) -> web.StreamResponse:
    """``POST /api/v1/keys``."""
    require(request, Role.ADMIN)
    Parameters(request, ())
    asked = await _body(request)
    for name in asked:
        if name not in ("product", "role"):
            raise ProblemError(Code.BAD_REQUEST, f"{name:.80}: a key is made of product and role only")
    role = asked.get("role", Role.AGENT)
    if role not in list(Role):
        raise ProblemError(Code.BAD_REQUEST, f"role={role!r:.80}: one of {', '.join(Role)} is needed")
    try:
        key, row = make_key(asked.get("product"), Role(role), request.app[CLOCK]())
    except ConfigError as error:
        raise ProblemError(Code.BAD_REQUEST, str(error)) from error
    await request.app[CATALOG].put_key(row)
    return _json({**_key_json(row), "key": key}, status=201)


async def revoke_key(request: web.Request) -> web.StreamResponse:
    """``DELETE /api/v1/keys/{key_id}``."""
    require(request, Role.ADMIN)
    Parameters(request, ())
    key_id = request.match_info["key_id"]
    if not await request.app[CATALOG].revoke_key(key_id, request.app[CLOCK]()):
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


# -- bodies ------------------------------------------------------------------------------------------------------------


async def _body(request: web.Request) -> dict[str, Any]:
    """The JSON object that the request carries; `ProblemError` for anything else."""
    if request.content_type != "application/json":
        raise ProblemError(Code.UNSUPPORTED_MEDIA_TYPE, "send a JSON object as application/json")
    body = await read_whole(request, MAX_BODY, request.app[CONFIG].body_timeout)
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProblemError(Code.BAD_REQUEST, f"the body is no JSON: {error}"[:300]) from error
    if not isinstance(given, dict):
        raise ProblemError(Code.BAD_REQUEST, "the body must be a JSON object")
    return given


def _json(answer: dict[str, Any], status: int = 200) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.json_response(answer, status=status, headers=headers)
