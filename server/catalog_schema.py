"""The layout of the SQLite catalog, as steps: step N leads from layout N to layout N + 1 (``PRAGMA user_version``).

A step that was released is never changed; a new need is a new step.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from mailboat.server.catalog import CatalogError

STEPS: Final = (
    """
    CREATE TABLE notes (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;

    -- One growing number for all changes of sessions, so that a reader can ask for what has changed since.
    CREATE TABLE revision (last INTEGER NOT NULL);
    INSERT INTO revision VALUES (0);

    CREATE TABLE products (name TEXT PRIMARY KEY, created REAL NOT NULL, plan TEXT NOT NULL) WITHOUT ROWID;

    CREATE TABLE keys (
        digest  BLOB PRIMARY KEY,
        id      TEXT NOT NULL UNIQUE,
        product TEXT REFERENCES products (name),
        role    TEXT NOT NULL,
        created REAL NOT NULL,
        revoked REAL
    ) WITHOUT ROWID;

    CREATE TABLE sessions (
        product     TEXT NOT NULL,
        session_id  TEXT NOT NULL,
        application TEXT NOT NULL,
        version     TEXT NOT NULL,
        status      TEXT NOT NULL,
        test        INTEGER NOT NULL,
        started     REAL NOT NULL,
        state       TEXT NOT NULL,
        reason      TEXT NOT NULL,
        explanation TEXT NOT NULL,
        skew        REAL,
        first_seen  REAL NOT NULL,
        updated     REAL NOT NULL,
        revision    INTEGER NOT NULL,
        summary     BLOB NOT NULL,
        PRIMARY KEY (product, session_id)
    );
    CREATE UNIQUE INDEX sessions_by_revision ON sessions (revision);
    CREATE INDEX sessions_by_id ON sessions (session_id);
    CREATE INDEX sessions_of_product ON sessions (product, started, session_id);
    CREATE INDEX sessions_of_all ON sessions (started, product, session_id);

    CREATE TABLE uploads (
        id           TEXT PRIMARY KEY,
        product      TEXT NOT NULL,
        session_id   TEXT,
        segment      INTEGER,
        "offset"     INTEGER NOT NULL,
        length       INTEGER,
        phase        TEXT NOT NULL,
        epoch        INTEGER NOT NULL,
        limits       TEXT NOT NULL,
        expires      REAL,
        dialect      TEXT NOT NULL,
        verification TEXT NOT NULL,
        sha256       TEXT NOT NULL,
        reason       TEXT NOT NULL,
        detail       TEXT NOT NULL,
        records      INTEGER NOT NULL,
        loaded       INTEGER NOT NULL,
        created      REAL NOT NULL,
        updated      REAL NOT NULL
    );
    -- At most one upload carries a segment: this is what makes delivery exactly-once.
    CREATE UNIQUE INDEX uploads_of_segment ON uploads (product, session_id, segment) WHERE session_id IS NOT NULL;
    -- Partial indexes: small whatever the history, since what is complete and loaded leaves them.
    CREATE INDEX uploads_open ON uploads (id) WHERE phase = 'open';
    CREATE INDEX uploads_to_load ON uploads (updated)
        WHERE session_id IS NOT NULL AND loaded < "offset" AND verification != 'rejected';

    CREATE TABLE ledgers (
        product TEXT NOT NULL,
        source  TEXT NOT NULL,
        agent   TEXT NOT NULL,
        ledger  TEXT NOT NULL,
        updated REAL NOT NULL,
        PRIMARY KEY (product, source)
    ) WITHOUT ROWID;
    """,
    # What was said of an upload when it was made, as JSON; empty where that was nothing special.
    "ALTER TABLE uploads ADD COLUMN creation TEXT NOT NULL DEFAULT ''",
    # Plans: records of wanted sessions by month, and how many of each session were counted.
    """
    ALTER TABLE sessions ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE usage (
        product TEXT NOT NULL,
        month   INTEGER NOT NULL,
        records INTEGER NOT NULL,
        PRIMARY KEY (product, month)
    ) WITHOUT ROWID;
    """,
    # History windows: sessions by age, what has to go elsewhere when one is removed, and what was deleted.
    """
    CREATE INDEX sessions_by_age ON sessions (product, started + coalesce(skew, 0.0), session_id);
    CREATE TABLE doomed (
        product    TEXT NOT NULL,
        session_id TEXT NOT NULL,
        uploads    TEXT NOT NULL,
        PRIMARY KEY (product, session_id)
    ) WITHOUT ROWID;
    CREATE TABLE deletions (
        product  TEXT NOT NULL,
        day      INTEGER NOT NULL,
        sessions INTEGER NOT NULL,
        segments INTEGER NOT NULL,
        records  INTEGER NOT NULL,
        bytes    INTEGER NOT NULL,
        PRIMARY KEY (product, day)
    ) WITHOUT ROWID;
    """,
    # What a sweep looks for. A complete upload that is no part has no lifetime any more.
    """
    UPDATE uploads SET expires = NULL WHERE phase = 'complete' AND creation NOT LIKE '%"partial": true%';
    CREATE INDEX uploads_of_strangers ON uploads (product) WHERE phase = 'open' AND session_id IS NULL;
    CREATE INDEX uploads_expiring ON uploads (expires) WHERE phase IN ('open', 'complete') AND expires IS NOT NULL;
    CREATE INDEX uploads_quarantined ON uploads (id) WHERE phase = 'complete' AND verification = 'quarantined';
    CREATE INDEX uploads_gone ON uploads (updated)
        WHERE phase IN ('cancelled', 'expired', 'invalid') AND session_id IS NULL;
    """,
    # What people say of groups of exceptions.
    """
    CREATE TABLE triages (
        product  TEXT NOT NULL,
        "group"  TEXT NOT NULL,
        standing TEXT NOT NULL,
        version  TEXT NOT NULL,
        changed  REAL NOT NULL,
        PRIMARY KEY (product, "group")
    ) WITHOUT ROWID;
    """,
    # Whose account each session is in.
    "ALTER TABLE sessions ADD COLUMN source TEXT NOT NULL DEFAULT ''",
    # Rejected segments are in quarantine, too.
    "CREATE INDEX uploads_rejected ON uploads (id) WHERE phase = 'complete' AND verification = 'rejected'",
    # How much a product keeps that is of no session.
    """
    CREATE INDEX uploads_of_no_session ON uploads (product, "offset") WHERE phase = 'complete' AND session_id IS NULL
    """,
    # Which of the servers that share a catalog does what only one may do at a time, and until when.
    "CREATE TABLE leases (name TEXT PRIMARY KEY, holder TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
    # What is made of an upload, asked whenever one is complete or has expired. A row of an upload goes with it.
    """
    CREATE TABLE parts (
        part   TEXT NOT NULL,
        upload TEXT NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
        PRIMARY KEY (part, upload)
    ) WITHOUT ROWID;
    CREATE INDEX parts_of_upload ON parts (upload);
    INSERT OR IGNORE INTO parts SELECT part.value, uploads.id FROM uploads, json_each(uploads.creation, '$.parts') part
        WHERE uploads.creation != ''
    """,
    # What is to be loaded of uploads that go on, beside a backlog of complete ones.
    """
    CREATE INDEX uploads_going_on ON uploads (updated)
        WHERE phase = 'open' AND session_id IS NOT NULL AND loaded < "offset" AND verification != 'rejected'
    """,
    # How many new sessions each product has had on the last day on which it had any.
    "CREATE TABLE arrivals (product TEXT PRIMARY KEY, day INTEGER NOT NULL, sessions INTEGER NOT NULL) WITHOUT ROWID",
)


def bring_up_to_date(db: sqlite3.Connection) -> None:
    """Make the tables, or change those of an earlier layout; each step is one transaction.

    Raises `CatalogError` for a catalog of a later mailboat.
    """
    while _step(db):
        pass


def _step(db: sqlite3.Connection) -> bool:
    """Take the next step; False when there is none."""
    db.execute("BEGIN IMMEDIATE")  # two processes may come here at once: the second finds the work done
    try:
        (layout,) = db.execute("PRAGMA user_version").fetchone()
        if layout > len(STEPS):
            raise CatalogError(f"the catalog has layout {layout}, this mailboat knows {len(STEPS)}: update it")
        if layout < len(STEPS):
            for statement in STEPS[layout].split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {layout + 1}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    return bool(layout < len(STEPS))
