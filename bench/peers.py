"""Other ways of keeping a record, measured beside the agent where they are installed (``pip install '.[bench]'``).

Each writes the same record to a file of its own, set up as its documentation has it for a program that must not lose
what it logged: handed to the system when the call returns. OpenTelemetry, PostHog and Glean have no such thing; their
records wait in the process's memory for a thread, and nothing is sent here.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Call = Callable[..., object]
"""``call(name, **attributes)``."""


_NEVER = 2**31 - 1
"""Events before Glean would send some."""


class Missing(Exception):
    """The peer is not installed."""


@contextmanager
def standard_logging(folder: Path) -> Iterator[Call]:
    """`logging.FileHandler` with one line of JSON for each record."""
    handler = logging.FileHandler(folder / "logging.log")
    handler.setFormatter(_JsonLines())
    logger = logging.Logger("bench.peer")  # noqa: LOG001 - one of its own, so that nobody else's handlers are measured
    logger.addHandler(handler)
    try:
        yield lambda name, **attributes: logger.info(name, extra={"attributes": attributes})
    finally:
        handler.close()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps({"event": record.msg, "time": record.created, **record.__dict__["attributes"]})


@contextmanager
def structured(folder: Path) -> Iterator[Call]:
    """`structlog` as its page on performance advises: no check of levels at run time, lines written and flushed."""
    structlog = _import("structlog")
    with (folder / "structlog.log").open("w") as file:
        logger = structlog.wrap_logger(
            structlog.WriteLogger(file),
            processors=[structlog.processors.TimeStamper(), structlog.processors.JSONRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            cache_logger_on_first_use=True,
        ).bind()
        yield logger.info


@contextmanager
def open_telemetry(_folder: Path) -> Iterator[Call]:
    """OpenTelemetry's logs with its batch processor, and an exporter that drops what it gets."""
    _import("opentelemetry.sdk")
    api, sdk = _import("opentelemetry._logs"), _import("opentelemetry.sdk._logs")
    exporting = _import("opentelemetry.sdk._logs.export")
    drop = type(
        "Drop",
        (exporting.LogRecordExporter,),
        {
            "export": lambda *_: exporting.LogRecordExportResult.SUCCESS,
            "force_flush": lambda *_: None,
            "shutdown": lambda _: None,
        },
    )
    provider = sdk.LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(exporting.BatchLogRecordProcessor(drop()))
    logger = provider.get_logger("bench")
    severity = api.SeverityNumber.INFO

    def call(name: str, **attributes: Any) -> None:  # noqa: ANN401 - as the peer takes them
        logger.emit(api.LogRecord(event_name=name, severity_number=severity, attributes=attributes))

    try:
        yield call
    finally:
        provider.shutdown()


@contextmanager
def posthog(_folder: Path) -> Iterator[Call]:
    """PostHog's client: a queue for a thread that would send; here there is no such thread."""
    client = _import("posthog").Posthog("phc_bench", host="http://127.0.0.1:1", max_queue_size=0, thread=0)
    try:
        yield lambda name, **attributes: client.capture(name, distinct_id="bench", properties=attributes)
    finally:
        atexit.unregister(client._atexit)  # noqa: SLF001 - it would wait for what is never sent


@contextmanager
def glean(folder: Path) -> Iterator[Call]:
    """Mozilla's Glean: one declared event, whose extras are texts; its own thread writes it. Uploads are dropped."""
    sdk, metrics, native = _import("glean"), _import("glean.metrics.event"), _import("glean._uniffi")
    uploading = _import("glean.net.base_uploader")
    drop = type("Drop", (uploading.BaseUploader,), {"upload": lambda *_: native.UploadResult.HTTP_STATUS(200)})
    extras = type("Extras", (metrics.EventExtras,), {"to_ffi_extra": lambda made: made.texts})
    common = native.CommonMetricData(
        category="import", name="csv", send_in_pings=["events"], lifetime=native.Lifetime.PING, disabled=False
    )
    event = metrics.EventMetricType(common, ["rows", "source", "ok", "size"])
    configuration = sdk.Configuration(
        ping_uploader=drop(), allow_multiprocessing=False, enable_internal_pings=False, max_events=_NEVER
    )
    sdk.Glean.initialize(
        application_id="bench",
        application_version="1",
        upload_enabled=True,
        data_dir=folder / "glean",
        configuration=configuration,
        log_level=logging.CRITICAL,
    )

    def call(_name: str, **attributes: Any) -> None:  # noqa: ANN401 - as the peer takes them
        made = extras()
        made.texts = {key: str(value) for key, value in attributes.items()}
        event.record(made)

    try:
        yield call
    finally:
        sdk.Glean.shutdown()


@contextmanager
def sentry(_folder: Path) -> Iterator[Call]:
    """Sentry's client: one event, whose attributes are extras; what carries it drops it. Its integrations, which would
    look at every other module, are left out.
    """
    sdk, carrying = _import("sentry_sdk"), _import("sentry_sdk.transport")
    drop = type("Drop", (carrying.Transport,), {"capture_envelope": lambda *_: None})
    client = sdk.Client(
        dsn="http://key@127.0.0.1:1/1", transport=drop, default_integrations=False, auto_enabling_integrations=False
    )
    try:
        yield lambda name, **attributes: client.capture_event({"message": name, "level": "info", "extra": attributes})
    finally:
        client.close(timeout=0)


PEERS = {
    "logging.FileHandler": standard_logging,
    "structlog": structured,
    "OpenTelemetry logs": open_telemetry,
    "PostHog": posthog,
    "Glean": glean,
    "Sentry": sentry,
}

PACKAGES = ("structlog", "opentelemetry-sdk", "posthog", "glean-sdk", "sentry-sdk")
"""Distributions whose versions belong to the results."""


def _import(name: str) -> Any:  # noqa: ANN401 - optional, so nothing is known of its types
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Missing(f"not installed ({error.name})") from error
