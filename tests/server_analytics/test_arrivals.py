"""Whatever arrives shows in the reports without anybody doing anything about it."""

from __future__ import annotations

from collections.abc import Awaitable

from mailboat.protocol import Info, wire
from mailboat.protocol.negotiation import Request, Rider
from mailboat.server.context import COUNTERS
from testkit.segments import Segment, feature
from testkit.serverkit import AGENT, Answer, eventually, fresh_session_id, summary_of
from testkit.sites import PRODUCT, Site


async def test_what_arrives_is_loaded_by_itself(site: Site) -> None:
    """Blocks of a session that still runs, its rest, what rides along, what anybody uploads. The look that is taken
    once a minute is longer off than this test waits.
    """
    await site.settled()
    counters, loaded = site.server.app[COUNTERS], 0
    segments = []
    for _ in range(3):
        segment = Segment(fresh_session_id(), info=Info(product=PRODUCT))
        segment.block([feature("a"), feature("b")])
        segment.block([feature("c")])
        segments.append(segment)
    data = [each.seal() for each in segments]
    path = await site.agent.upload_of(data[0])
    rider = Rider(summary_of(data[1]).session_id, 0, memoryview(data[1]))

    async def arrives(records: int, answer: Awaitable[Answer], status: int) -> None:
        nonlocal loaded
        assert (await answer).status == status
        loaded += records
        await eventually(lambda: counters["ingest_records"] == loaded)
        overview = await site.get("/api/v1/overview")
        assert overview["records"]["feature"] == loaded

    cut = segments[0].ends[0]
    await arrives(2, site.agent.append(path, data[0][:cut], 0, complete=False), 204)
    await arrives(1, site.agent.append(path, data[0][cut:], cut, complete=True), 204)
    body = Request(AGENT, (summary_of(data[1]),), riders=(rider,)).encode(wire.MSGPACK_MEDIA_TYPE)
    await arrives(3, site.agent.ask("POST", "/v1/negotiate", data=body, Content_Type=wire.MSGPACK_MEDIA_TYPE), 200)
    await arrives(3, site.agent.ask("POST", "/v1/uploads", data=data[2], Upload_Complete="?1"), 201)
