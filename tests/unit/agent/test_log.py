"""The host's logging may fail: that is nobody's end but its own."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailboat.agent import Agent
from mailboat.agent.log import CarefulLog, log
from testkit.recording import read_session

UNREACHABLE = "http://127.0.0.1:9"


class Demanding(logging.Filter):
    """Relies on what only the host's own records have."""

    def filter(self, record: logging.LogRecord) -> bool:
        return bool(record.request_id)  # type: ignore[attr-defined] # that is the mistake


@pytest.fixture
def demanding() -> Iterator[None]:
    """For the agent alone: asyncio would fall over it, too."""
    handler, logger = logging.StreamHandler(io.StringIO()), logging.getLogger("mailboat")
    handler.addFilter(Demanding())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.mark.usefixtures("demanding")
def test_what_the_hosts_filters_raise_is_counted() -> None:
    careful = CarefulLog(logging.getLogger("mailboat"))
    careful.info("told %s", "nobody")
    try:
        raise LookupError("of the agent's")
    except LookupError:
        careful.exception("told nobody")
    assert careful.failures == 2
    with pytest.raises(AttributeError, match="request_id"):
        logging.getLogger("mailboat").info("as the host would have it")


def test_a_line_names_its_place_and_its_error(caplog: pytest.LogCaptureFixture) -> None:
    error = LookupError("an error")
    log.warning("this %s", "way", exc_info=error)
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("mailboat", "WARNING", "this way")
    assert (record.filename, record.funcName) == (Path(__file__).name, "test_a_line_names_its_place_and_its_error")
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.usefixtures("demanding")
async def test_an_agent_lives_on_under_logging_that_fails(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    before = log.failures
    agent = Agent(store=tmp_path / "store", server=UNREACHABLE, product="P", application="A", startup_delay=3600.0)
    async with agent:
        agent.feature("one")
        assert not await agent.flush(durable=True)
        assert agent.status.trouble
        (tmp_path / "store").unlink()
        async with asyncio.timeout(20.0):
            while not await agent.flush(durable=True):
                assert agent._session is not None
                assert agent._session.writer.alive
        agent.feature("two")
        report = await agent.force_sync(timeout=0.0)
        assert not report.complete
    assert log.failures > before
    assert read_session(tmp_path / "store" / "P" / "A" / "waiting" / str(agent.session_id)).names == ["one", "two"]
