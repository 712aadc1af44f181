"""The shapes of the answers of the JSON API: what a reader may rely on. The OpenAPI document shows them."""

from __future__ import annotations

from typing import Final

from mailboat.protocol.records import COUNTERS, KIND_COUNTERS, SCHEMA_COUNTER
from mailboat.protocol.summary import INFO_TEXTS, Status
from mailboat.server.catalog import SessionState, Verification
from mailboat.server.shapes import (
    ANYTHING,
    COUNT,
    DAY,
    FLAG,
    ID,
    NUMBER,
    SECONDS,
    SHARE,
    TEXT,
    TIME,
    WHOLE,
    Shape,
    by_name,
    made_of,
    maybe,
    one_of,
    some,
    told,
)
from mailboat.server.sums import RECORD_TABLES
from mailboat.server.triage_rows import Standing

NEXT: Final = told(maybe(TEXT), "The cursor of the next page")

# -- sessions ------------------------------------------------------------------------------------------------------

_INFO: Final = made_of(
    {
        **dict.fromkeys(INFO_TEXTS, TEXT),
        "test": FLAG,
        "anonymous": FLAG,
        "parent": maybe(ID),
        "properties": by_name(ANYTHING),
    }
)
_OFFERED: Final = made_of({"index": COUNT, "size": COUNT, "records": COUNT, "sealed": FLAG, "sha256": TEXT})
_SESSION: Final = {
    "session": ID,
    "info": _INFO,
    "started": TIME,
    "ended": told(TIME, "Unix seconds; of a running session the last sign of life"),
    "duration": SECONDS,
    "status": one_of(*Status),
    "counts": made_of(dict.fromkeys(COUNTERS, COUNT)),
    "offered": told(some(_OFFERED), "Its segments as the agent has them"),
    "installation": TEXT,
    "installation_properties": by_name(ANYTHING),
    "lost": told(by_name(COUNT), "Records that the agent could not keep, by reason"),
    "product": TEXT,
    "records": COUNT,
    "errors": COUNT,
    "state": one_of(*SessionState),
    "reason": TEXT,
    "explanation": TEXT,
    "locked": told(FLAG, "Whether it is sealed to a key that is not here"),
    "delivered": told(FLAG, "Whether all of it is here, and no more will come"),
    "skew": told(maybe(NUMBER), "Seconds to be added to its machine's clock"),
    "corrected": told(made_of({"started": TIME, "ended": TIME}), "By the server's clock, where its machine's is wrong"),
    "first_seen": TIME,
    "updated": TIME,
    "bytes": COUNT,
}
SESSIONS: Final = made_of({"sessions": some(made_of({**_SESSION, "segments": COUNT})), "next": NEXT})

_SEGMENT: Final = made_of(
    {
        "upload_id": ID,
        "product": TEXT,
        "session_id": ID,
        "index": COUNT,
        "offset": told(COUNT, "Bytes of it that are here"),
        "complete": FLAG,
        "verification": one_of(*Verification),
        "sha256": TEXT,
        "reason": TEXT,
        "detail": TEXT,
        "records": COUNT,
        "loaded": COUNT,
        "created": TIME,
        "updated": TIME,
    }
)
_GAP: Final = made_of(
    {
        "segment": COUNT,
        "offset": COUNT,
        "length": COUNT,
        "reason": TEXT,
        "first": told(COUNT, "The sequence number of the first record that may be missing"),
        "records": told(maybe(COUNT), "How many; null where nobody can tell"),
    }
)
SESSION: Final = made_of({**_SESSION, "segments": some(_SEGMENT), "loaded": COUNT, "gaps": some(_GAP)})

_FRAMES: Final = told(some(some(ANYTHING)), "[file, line, function] each, outermost first")
_RECORD: Final = made_of(
    {"sequence": COUNT, "time": TIME, "kind": TEXT, "name": TEXT, "attributes": by_name(ANYTHING)},
    {
        "value": ANYTHING,
        "unit": ANYTHING,
        "duration": ANYTHING,
        "level": ANYTHING,
        "message": ANYTHING,
        "context": ANYTHING,
        "stack": ANYTHING,
        "causes": ANYTHING,
        "rest": ANYTHING,
    },
)
RECORDS: Final = made_of({"session": ID, "records": some(_RECORD), "next": NEXT, "gaps": some(_GAP)})

# -- reports -------------------------------------------------------------------------------------------------------

_OF_SESSIONS: Final = {
    "sessions": COUNT,
    "installations": COUNT,
    "crashed": COUNT,
    "first": maybe(TIME),
    "last": maybe(TIME),
}
_CRASH_FREE: Final = told(maybe(SHARE), "Of the sessions that have ended, those that did not crash")


def _by(**names: Shape) -> Shape:
    return some(made_of({**names, **_OF_SESSIONS}))


OVERVIEW: Final = made_of(
    {
        "sessions": COUNT,
        "installations": COUNT,
        "crashed": COUNT,
        "ended": COUNT,
        "running": COUNT,
        "declined": COUNT,
        "rejected": COUNT,
        "users": COUNT,
        "crash_free": _CRASH_FREE,
        "records": made_of(dict.fromkeys(RECORD_TABLES, COUNT)),
        "declared": made_of(dict.fromkeys(COUNTERS[:KIND_COUNTERS], COUNT)),
        "levels": made_of(dict.fromkeys(COUNTERS[KIND_COUNTERS:SCHEMA_COUNTER], COUNT)),
        "versions": _by(application=TEXT, version=TEXT),
        "environment": made_of({name: _by(**{name: TEXT}) for name in ("os", "runtime", "locale", "environment")}),
        "days": some(
            made_of({"day": DAY, **dict.fromkeys(("sessions", "installations", "users", "crashed", "records"), COUNT)})
        ),
    }
)
VERSIONS: Final = made_of(
    {
        "versions": some(
            made_of(
                {
                    "application": TEXT,
                    "version": TEXT,
                    **_OF_SESSIONS,
                    "share": told(SHARE, "Of the application's sessions"),
                    "crash_free": _CRASH_FREE,
                }
            )
        ),
        "days": told(
            some(
                made_of({"day": DAY, "application": TEXT, "version": TEXT, "sessions": COUNT, "installations": COUNT})
            ),
            "Of the versions used most, the latest day first",
        ),
    }
)
INSTALLATIONS: Final = made_of(
    {
        "installations": some(
            made_of(
                {
                    "product": TEXT,
                    "installation": TEXT,
                    "sessions": COUNT,
                    "records": COUNT,
                    "crashed": COUNT,
                    "first": TIME,
                    "last": TIME,
                    **dict.fromkeys(("application", "version", "os", "runtime", "locale"), TEXT),
                }
            )
        ),
        "next": NEXT,
    }
)
WARNINGS: Final = made_of(
    {
        "gaps": some(made_of({"reason": TEXT, "count": COUNT, "sessions": COUNT, "records": COUNT})),
        "failed": told(some(made_of({"reason": TEXT, "segments": COUNT})), "Segments that cannot be loaded"),
        "rejections": told(
            some(made_of({"reason": TEXT, "sessions": COUNT, "records": COUNT, "last": TIME})),
            "Sessions that were rejected, by reason, with the records that they were said to have",
        ),
        "clocks_corrected": told(COUNT, "Sessions of machines whose clocks are wrong"),
        "worst_clock": maybe(SECONDS),
        "rejected": told(COUNT, "Sessions"),
    }
)
FEATURES: Final = made_of(
    {
        "features": some(
            made_of(
                {
                    "name": TEXT,
                    "parent": maybe(TEXT),
                    "uses": told(COUNT, "Of it and of all below it"),
                    "own": told(COUNT, "Of just this name"),
                    "sessions": COUNT,
                    "installations": COUNT,
                    "first": TIME,
                    "last": TIME,
                    "share": told(maybe(SHARE), "Of the sessions whose records are here"),
                }
            )
        ),
        "sessions": COUNT,
        "next": NEXT,
    }
)
_PERCENTILES: Final = made_of(dict.fromkeys(("50", "90", "95", "99"), maybe(NUMBER)))
VALUES: Final = made_of(
    {
        "values": some(
            made_of(
                {
                    "kind": one_of("value", "timing"),
                    "name": TEXT,
                    "unit": maybe(TEXT),
                    "count": COUNT,
                    "sessions": COUNT,
                    **dict.fromkeys(("sum", "min", "max", "mean"), maybe(NUMBER)),
                    "percentiles": _PERCENTILES,
                }
            )
        ),
        "next": NEXT,
    }
)
EXCEPTIONS: Final = made_of(
    {
        "exceptions": some(
            made_of(
                {
                    "product": TEXT,
                    "group": TEXT,
                    "type": TEXT,
                    "count": COUNT,
                    "sessions": COUNT,
                    "installations": COUNT,
                    "first": TIME,
                    "last": TIME,
                    "versions": some(TEXT),
                    "level": maybe(WHOLE),
                    "message": maybe(TEXT),
                    "context": maybe(TEXT),
                    "stack": _FRAMES,
                    "causes": some(ANYTHING),
                    "session": ID,
                    "sequence": COUNT,
                    "state": one_of(*Standing),
                    "resolved": told(maybe(TEXT), "In which version, where it was said to be; empty if none was named"),
                    "reopened": FLAG,
                }
            )
        ),
        "next": NEXT,
    }
)
DELIVERY: Final = made_of(
    {
        "lateness": told(
            made_of({"records": COUNT, "percentiles": _PERCENTILES}),
            "Seconds from the end of a session to the last bytes of its records, and how many records that is of",
        ),
        "days": some(
            made_of(
                {
                    "day": DAY,
                    **dict.fromkeys(("sessions", "running", "announced", "here", "declined", "rejected"), COUNT),
                    "complete": told(maybe(SHARE), "The likely part of the day's records that are here"),
                }
            )
        ),
    }
)
ACCOUNTS: Final = made_of(
    {
        "stores": some(
            made_of(
                {
                    "product": TEXT,
                    "source": told(TEXT, "The store's id"),
                    "installation": told(TEXT, "Whom its sessions named last; empty where they named nobody"),
                    "agent": TEXT,
                    "updated": TIME,
                    "said": made_of(
                        dict.fromkeys(
                            ("recorded", "accepted", "declined", "rejected", "evicted", "lost", "pending"), COUNT
                        )
                    ),
                    "here": made_of(dict.fromkeys(("sessions", "records", "declined", "rejected"), COUNT)),
                    "balanced": told(FLAG, "Whether what the store says accounts for each of its records"),
                    "missing": told(maybe(COUNT), "Records that the store was told are here, and are not"),
                }
            )
        ),
        "next": NEXT,
    }
)
TRIAGE: Final = made_of({"product": TEXT, "group": TEXT, "state": one_of(*Standing), "version": TEXT, "changed": TIME})
WANTED_SESSION: Final = made_of({"product": TEXT, "session": TEXT})
SAID_OF_EXCEPTION: Final = made_of({"state": one_of(*Standing)}, {"version": TEXT})
LEDGER: Final = made_of(
    {
        "reported": some(
            made_of({"product": TEXT, "source": TEXT, "agent": TEXT, "ledger": by_name(ANYTHING), "updated": TIME})
        ),
        "here": some(
            made_of(
                {
                    "product": TEXT,
                    **dict.fromkeys(
                        (
                            "sessions",
                            "declared",
                            "loaded",
                            "missing",
                            "declined_sessions",
                            "declined_records",
                            "rejected_sessions",
                            "failed_segments",
                        ),
                        COUNT,
                    ),
                }
            )
        ),
        "next": NEXT,
    }
)
