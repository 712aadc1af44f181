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
from mailboat.server.context import BLOBS, CATALOG, CLOCK, CONFIG, COUNTERS, ProblemError, run_in_worker
from mailboat.server.ingest import REPORTS
from mailboat.server.operations import Asked
from mailboat.server.reports import Scope, TooSlow, holdings
from mailboat.server.turns import TURNS

ALARMING: Final = (
    "ingest_failures",
    "problems_internal",
    "retention_failures",
    "storage_sync_failed",
    "sweeps_failed",
    "uploads_lost",
)
"""Counters that are told before they have counted anything: of one that comes up with its first count, Prometheus sees
no growth. The page on deployment names them as worth an alert.
"""

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_ODD: Final = re.compile(r"[^a-zA-Z0-9_]")

_GAUGES: Final = {
    "sessions": "Sessions known of",
    "declared": "Records that the summaries of sessions declare",
    "loaded": "Records loaded into the analytics store",
    "missing": "Records known to be missing from segments",
    "failed_segments": "Segments that could not be loaded",
}


_OF_SERVER: Final = {
    "transfers": "Bodies of uploads that are coming in now",
    "uploads_unfinished": "Uploads that take more bytes",
    "ingest_queue_segments": "Segments with bytes that are not loaded yet",
    "ingest_queue_bytes": "Bytes that are not loaded yet",
    "ingest_lag_seconds": "How long the first of them has waited",
    "disk_free_bytes": "Bytes that may still be stored",
    "disk_reserve_bytes": "Below so many free bytes no new upload is begun",
}

LABELS: Final = {
    "requests": ("status", "Requests answered"),
    "decisions": ("verdict", "Sessions that agents offered, by what was decided of them"),
    "rejections": ("reason", "Sessions that were rejected"),
    "problems": ("code", "Requests answered with a problem document"),
    "uploads_refused": ("why", "Requests on uploads that were refused"),
    "transfers_ended": ("why", "Bodies of uploads that the server has cut, their bytes so far kept"),
}
"""Counters that are kept by kind as ``NAME_KIND``: the label of the kind, and what they count."""


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
        standing = await _standing(asked.app)
        lines += [
            f"# HELP mailboat_{name} {text}.\n# TYPE mailboat_{name} gauge\nmailboat_{name} {standing[name]}\n"
            for name, text in _OF_SERVER.items()
        ]
        lines += counters(dict.fromkeys(ALARMING, 0) | asked.app[COUNTERS])
    return web.Response(body="".join(lines).encode(), headers={"Content-Type": METRICS_TYPE})


async def _standing(app: web.Application) -> dict[str, float]:
    """How the server stands now; the keys are those of `_OF_SERVER`."""
    queue = await app[CATALOG].queue()
    return {
        "transfers": app[TURNS].transfers,
        "uploads_unfinished": queue.unfinished,
        "ingest_queue_segments": queue.segments,
        "ingest_queue_bytes": queue.bytes,
        "ingest_lag_seconds": 0.0 if queue.since is None else round(max(0.0, app[CLOCK]() - queue.since), 3),
        "disk_free_bytes": await run_in_worker(app, app[BLOBS].free),
        "disk_reserve_bytes": app[CONFIG].min_free_bytes,
    }


def counters(counts: Mapping[str, int]) -> list[str]:
    """The lines of all counters; those of one name stand together, whatever their labels."""
    plain: dict[str, int] = {}
    kinds: dict[str, dict[str, int]] = {}
    for name, count in sorted(counts.items()):
        family = max((each for each in LABELS if name.startswith(f"{each}_")), key=len, default=None)
        if family is None:
            plain[name] = count
        else:
            kinds.setdefault(family, {})[name.removeprefix(f"{family}_")] = count
    lines = []
    for family, found in kinds.items():
        label, text = LABELS[family]
        lines.append(f"# HELP mailboat_{family}_total {text}.\n# TYPE mailboat_{family}_total counter\n")
        lines += [f'mailboat_{family}_total{{{label}="{_label(kind)}"}} {count}\n' for kind, count in found.items()]
    for name, count in plain.items():
        full = f"mailboat_{_ODD.sub('_', name)}_total"
        lines.append(f"# TYPE {full} counter\n{full} {count}\n")
    return lines


def _gauge(name: str, text: str, rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    yield f"# HELP mailboat_{name} {text}.\n# TYPE mailboat_{name} gauge\n"
    for row in rows:
        yield f'mailboat_{name}{{product="{_label(row["product"])}"}} {row[name]}\n'


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
