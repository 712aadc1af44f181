"""What connects an agent with a program records what it should, and harms nothing, whatever goes wrong around it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from mailboat.agent import Agent, Level
from mailboat.agent.integrations.aiohttp_web import record_requests
from mailboat.agent.integrations.asgi import AsgiMiddleware, Message
from mailboat.agent.integrations.logs import LogHandler
from mailboat.agent.store import WAITING
from mailboat.protocol.records import Record
from testkit.forking import in_child
from testkit.recording import read_session

Records = list[Record]


@asynccontextmanager
async def recording(root: Path) -> AsyncIterator[tuple[Agent, Records]]:
    """An agent, and what it has recorded once the context has ended."""
    found: Records = []
    agent = Agent(store=root, server=None, product="product", application="application")
    async with agent:
        yield agent, found
    assert agent.session_id is not None
    found += read_session(root / "product" / "application" / WAITING / agent.session_id).records


@pytest.fixture
def logger() -> logging.Logger:
    """One of its own, which nobody else listens to."""
    return logging.Logger("acme.orders", logging.DEBUG)  # noqa: LOG001 - outside of the tree of loggers, where pytest is


def told(records: Records) -> list[tuple[str, str, int | None, str | None]]:
    return [(each.kind, each.name, each.level, each.message) for each in records]


async def test_what_is_no_exception_is_told_as_one_all_the_same(tmp_path: Path) -> None:
    """As a logger's `exception` takes a text."""
    async with recording(tmp_path) as (agent, found):
        agent.exception("no connection")  # type: ignore[arg-type] # that is the point
        agent.exception(LookupError)  # type: ignore[arg-type] # that is the point
    assert told(found) == [
        ("exception", "str", Level.ERROR, "no connection"),
        ("exception", "type", Level.ERROR, "<class 'LookupError'>"),
    ]


# -- logging -----------------------------------------------------------------------------------------------------------


async def test_log_records_become_events_with_their_place_and_extras(tmp_path: Path, logger: logging.Logger) -> None:
    async with recording(tmp_path) as (agent, found):
        logger.addHandler(LogHandler(agent, logging.INFO))
        logger.debug("not seen")
        logger.info("order %d of %s", 7, "Ann", extra={"order": 7, "level": "gold", "context": [1]})
        logger.log(logging.CRITICAL + 5, "very bad")
    assert told(found) == [
        ("event", "acme.orders", logging.INFO, "order 7 of Ann"),
        ("event", "acme.orders", logging.CRITICAL + 5, "very bad"),
    ]
    attributes = dict(found[0].attributes)
    assert (attributes.pop("file"), attributes.pop("function")) == (
        __file__,
        "test_log_records_become_events_with_their_place_and_extras",
    )
    assert isinstance(attributes.pop("line"), int)
    assert attributes == {"order": 7, "extra.level": "gold", "extra.context": [1]}


async def test_a_line_takes_no_lock_whatever_logging_does_by_itself(
    tmp_path: Path, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since Python 3.13 a handler's lock is taken without a look at whether there is one."""

    def locking(self: logging.Handler, record: logging.LogRecord) -> bool:
        raise AssertionError(f"{self.lock} is to be taken for {record}")

    class Renamed(logging.Filter):
        def filter(self, record: logging.LogRecord) -> Any:  # noqa: ANN401 - since Python 3.12 a record, too
            return logging.makeLogRecord({**vars(record), "name": "renamed"}) if record.args else False

    monkeypatch.setattr(logging.Handler, "handle", locking)
    async with recording(tmp_path) as (agent, found):
        handler = LogHandler(agent)
        logger.addHandler(handler)
        logger.info("one")
        handler.addFilter(Renamed())
        logger.info("left out")
        logger.info("number %d", 2)
    # Python 3.11 takes what a filter says for yes or no.
    renamed = "renamed" if sys.version_info >= (3, 12) else "acme.orders"
    assert [(each.name, each.message) for each in found] == [("acme.orders", "one"), (renamed, "number 2")]


async def test_an_exception_is_recorded_once_and_the_line_in_any_case(tmp_path: Path, logger: logging.Logger) -> None:
    async with recording(tmp_path) as (agent, found):
        logger.addHandler(LogHandler(agent))
        try:
            raise LookupError("no such order")
        except LookupError as error:
            logger.warning("while %s", "looking", exc_info=True)
            logger.exception("again")
            again = error
        agent.exception(again)  # asked for by the application itself: that is recorded
        logger.error("no exception", exc_info=True)  # noqa: LOG014 - a mistake that is made
    assert told(found) == [
        ("exception", "LookupError", Level.WARNING, "no such order"),
        ("event", "acme.orders", Level.ERROR, "again"),
        ("exception", "LookupError", Level.ERROR, "no such order"),
        ("event", "acme.orders", Level.ERROR, "no exception"),
    ]
    assert (found[0].context, found[0].attributes["logger"]) == ("while looking", "acme.orders")


async def test_what_mailboat_itself_says_is_never_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path) as (agent, found):
        handler = LogHandler(agent)
        for name in ("mailboat", "mailboat.agent", "mailboats"):
            own = logging.getLogger(name)
            own.addHandler(handler)
            own.warning("text")
            own.removeHandler(handler)
    assert [each.name for each in found] == ["mailboats"]


async def test_lines_that_cannot_be_recorded_are_counted_and_harm_nothing(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    class Talking:
        """Logs while it is being made a text."""

        def __str__(self) -> str:
            logger.error("from within %s", self)
            return "talking"

    class Broken:
        def __str__(self) -> NoReturn:
            raise ZeroDivisionError

        __repr__ = __str__

    async with recording(tmp_path) as (agent, found):
        handler = LogHandler(agent)
        logger.addHandler(handler)
        logger.info("too few %s %s", 1)  # noqa: PLE1206 - a mistake that is made
        logger.info("%s", Broken())
        logger.info("%s", Talking())
        logger.info("%s", "fine", extra={"value": Broken()})
    assert [each.message for each in found] == ["talking", "fine"]
    assert handler.failures == 3
    assert capsys.readouterr().err == ""


async def test_an_interrupt_in_a_handler_is_not_swallowed(tmp_path: Path, logger: logging.Logger) -> None:
    class Interrupted:
        def __str__(self) -> NoReturn:
            raise KeyboardInterrupt

    async with recording(tmp_path) as (agent, found):
        logger.addHandler(LogHandler(agent))
        with pytest.raises(KeyboardInterrupt):
            logger.info("%s", Interrupted())
        logger.info("goes on")
    assert [each.message for each in found] == ["goes on"]


async def test_logging_in_an_alert_callback_raises_no_further_alert(tmp_path: Path, logger: logging.Logger) -> None:
    alerts: asyncio.Queue[list[str]] = asyncio.Queue()

    def callback(alert: Any) -> None:  # noqa: ANN401 - an alert
        logger.critical("%d errors", len(alert))
        alerts.put_nowait([each.message for each in alert])

    async with recording(tmp_path) as (agent, found):
        logger.addHandler(LogHandler(agent))
        agent.on_alert(callback)
        logger.error("first")
        async with asyncio.timeout(30):
            assert await alerts.get() == ["first"]
        logger.error("second")
        async with asyncio.timeout(30):
            assert await alerts.get() == ["second"]
    assert [each.message for each in found] == ["first", "1 errors", "second", "1 errors"]


async def test_in_a_forked_child_logging_goes_on(tmp_path: Path, logger: logging.Logger) -> None:
    async with recording(tmp_path) as (agent, found):
        handler = LogHandler(agent)
        logger.addHandler(handler)
        logger.info("parent")

        def log() -> list[Any]:
            logger.info("child")
            return [handler.failures, agent.status.recorded, str(agent.status.state)]

        with in_child(log) as child:
            assert child.result() == [0, 1, "forked"]
        logger.info("parent again")
    assert [each.message for each in found] == ["parent", "parent again"]


def test_without_a_running_agent_nothing_happens(logger: logging.Logger, tmp_path: Path) -> None:
    agent = Agent(store=tmp_path, server=None)
    logger.addHandler(LogHandler(agent))
    logger.exception("nothing runs")  # noqa: LOG004 - a mistake that is made
    logger.error("%s", "text")
    assert list(tmp_path.iterdir()) == []


# -- aiohttp.web -------------------------------------------------------------------------------------------------------


async def respond(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], agent: Agent, method: str) -> int:
    app = web.Application(middlewares=[record_requests(agent)])
    app.router.add_route("*", "/orders/{id}", handler)
    async with TestClient(TestServer(app)) as client, client.request(method, "/orders/secret") as response:
        await response.read()
        return response.status


async def test_answers_that_are_raised_are_no_exceptions_and_paths_are_not_recorded(tmp_path: Path) -> None:
    async def gone(_: web.Request) -> web.Response:
        raise web.HTTPGone

    async def fails(_: web.Request) -> web.Response:
        try:
            raise LookupError("inner")
        except LookupError:
            raise ArithmeticError("outer")  # noqa: B904 - an exception inside an exception

    async with recording(tmp_path) as (agent, found):
        assert await respond(gone, agent, "GET") == 410
        assert await respond(fails, agent, "POST") == 500
        assert await respond(gone, agent, "PROPFIND") == 410
    assert [(each.kind, each.name, each.attributes.get("status")) for each in found] == [
        ("timing", "http.GET./orders/{id}", 410),
        ("feature", "http.GET./orders/{id}", 410),
        ("exception", "ArithmeticError", None),
        ("timing", "http.POST./orders/{id}", 500),
        ("feature", "http.POST./orders/{id}", 500),
        ("timing", "http.OTHER./orders/{id}", 410),
        ("feature", "http.OTHER./orders/{id}", 410),
    ]
    assert (found[2].context, found[2].causes[0][1:3]) == ("POST /orders/{id}", ["LookupError", "inner"])
    assert "secret" not in repr(found)


# -- ASGI --------------------------------------------------------------------------------------------------------------


async def nothing() -> Message:
    return {"type": "http.disconnect"}


async def asked(agent: Agent, scope: Message, app: Callable[..., Awaitable[None]]) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await AsgiMiddleware(app, agent)(scope, nothing, send)
    return sent


async def test_asgi_messages_pass_as_they_are(tmp_path: Path) -> None:
    class Route:
        path = "/orders/{id}"

    async def app(scope: Message, receive: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has it
        assert await receive() == {"type": "http.disconnect"}
        scope["route"] = Route()
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    def endpoint() -> None: ...

    async def socket(scope: Message, _: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has it
        scope["endpoint"] = endpoint
        await send({"type": "websocket.close", "code": 1001})

    async def lifespan(scope: Message, _: Any, send: Any) -> None:  # noqa: ANN401 - as ASGI has it
        await send({"type": scope["type"]})

    async with recording(tmp_path) as (agent, found):
        sent = await asked(agent, {"type": "http", "method": "PUT", "path": "/orders/7"}, app)
        await asked(agent, {"type": "websocket"}, socket)
        assert await asked(agent, {"type": "lifespan"}, lifespan) == [{"type": "lifespan"}]
    assert sent == [{"type": "http.response.start", "status": 204}, {"type": "http.response.body"}]
    assert [(each.name, each.attributes) for each in found if each.kind == "feature"] == [
        ("http.PUT./orders/{id}", {"status": 204}),
        (f"http.WEBSOCKET.{endpoint.__qualname__}", {"status": 1001}),
    ]


@pytest.mark.parametrize("error", [LookupError("x"), ExceptionGroup("many", [ValueError(), KeyError()])])
async def test_what_an_asgi_application_raises_is_recorded_and_raised(tmp_path: Path, error: Exception) -> None:
    async def app(*_: object) -> None:
        raise error

    async with recording(tmp_path) as (agent, found):
        with pytest.raises(type(error)) as raised:
            await asked(agent, {"type": "http", "method": "GET"}, app)
    assert raised.value is error
    assert [(each.kind, each.name) for each in found] == [
        ("exception", type(error).__name__),
        ("timing", "http.GET.unmatched"),
        ("feature", "http.GET.unmatched"),
    ]


async def test_a_cancelled_request_is_no_exception(tmp_path: Path) -> None:
    async def app(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    async with recording(tmp_path) as (agent, found):
        task = asyncio.create_task(asked(agent, {"type": "http", "method": "GET"}, app))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [each.kind for each in found] == ["timing", "feature"]
    assert found[1].attributes == {"status": None}


# -- the block of the agent ----------------------------------------------------------------------------------------


async def test_an_exception_recorded_by_the_application_is_not_told_again_as_it_leaves(tmp_path: Path) -> None:
    found: Records = []
    with pytest.raises(LookupError):  # noqa: PT012 - the block is what is tested
        async with recording(tmp_path) as (agent, _):
            try:
                raise LookupError
            except LookupError:
                agent.exception()
                raise
    (folder,) = (tmp_path / "product" / "application" / WAITING).iterdir()
    found = read_session(folder).records
    assert [(each.kind, each.level) for each in found] == [("exception", Level.ERROR)]
    assert sys.exc_info() == (None, None, None)
