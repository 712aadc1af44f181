"""``GET /metrics``: counters and gauges in the text format of Prometheus (version 0.0.4).

A product's key sees the gauges of its product; an admin's key those of all, and the counters of the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web

from mailboat.protocol.errors import Code
from mailboat.server.catalog import Origin
from mailboat.server.context import COUNTERS, ProblemError
from mailboat.server.ingest import REPORTS
from mailboat.server.operations import Asked
from mailboat.server.reports import Scope, TooSlow, holdings

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_ODD: Final = re.compile(r"[^a-zA-Z0-9_]")

_GAUGES: Final = {
    "sessions": "Sessions known of",
    "declared": "Records that the summaries of sessions declare",
    "loaded": "Records loaded into the analytics store",
    "missing": "Records known to be missing from segments",
    "failed_segments": "Segments that could not be loaded",
}


async def metrics(asked: Asked) -> web.StreamResponse:
    """Counters and gauges in the text format of Prometheus."""
    principal = asked.principal
    scope = Scope(principal.product, origin=Origin.ALL)
    try:
        answer = await asked.app[REPORTS].ask(lambda question: holdings(scope, question))
    except TooSlow as error:
        raise ProblemError(Code.UNAVAILABLE, str(error)) from error
    lines = [line for name, text in _GAUGES.items() for line in _gauge(name, text, answer["products"])]
    if principal.product is None:
        lines += [line for name, count in sorted(asked.app[COUNTERS].items()) for line in _counter(name, count)]
    return web.Response(body="".join(lines).encode(), headers={"Content-Type": METRICS_TYPE})


def _gauge(name: str, text: str, rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    yield f"# HELP mailboat_{name} {text}.\n# TYPE mailboat_{name} gauge\n"
    for row in rows:
        yield f'mailboat_{name}{{product="{_label(row["product"])}"}} {row[name]}\n'


def _counter(name: str, count: int) -> Iterable[str]:
    full = f"mailboat_{_ODD.sub('_', name)}_total"
    yield f"# TYPE {full} counter\n{full} {count}\n"


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
