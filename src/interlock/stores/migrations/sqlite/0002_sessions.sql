-- Sessions, their runs and their logs of events. What is JSON is kept as its text, times as seconds since the epoch.
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL CHECK (status IN ('pending', 'active', 'paused', 'completed', 'failed', 'cancelled')),
    agent_id TEXT,
    max_concurrent_runs INTEGER NOT NULL,
    max_queued_runs INTEGER NOT NULL,
    collision TEXT NOT NULL CHECK (collision IN ('enqueue', 'reject', 'interrupt', 'rollback')),
    metadata TEXT NOT NULL,
    tags TEXT NOT NULL,
    created_at REAL NOT NULL,
    hidden_at REAL
) STRICT;

CREATE INDEX sessions_by_creation ON sessions (created_at, id) WHERE hidden_at IS NULL;

-- What changes with every event of a session, apart from what may be large.
CREATE TABLE counters (
    session INTEGER PRIMARY KEY REFERENCES sessions ON DELETE CASCADE,
    last_sequence INTEGER NOT NULL,
    runs INTEGER NOT NULL,
    updated_at REAL NOT NULL
) STRICT;

-- What may be large comes last, so that a look at the status or the attempt does not read it.
CREATE TABLE runs (
    key INTEGER PRIMARY KEY,
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL CHECK (
        status IN ('pending', 'running', 'paused', 'completed', 'failed', 'cancelled', 'interrupted', 'timeout')
    ),
    attempt INTEGER NOT NULL,
    number INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    timeout REAL,
    retry TEXT,
    idempotency_key TEXT,
    submitted_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    waited REAL,
    token_usage TEXT NOT NULL,
    metadata TEXT NOT NULL,
    error TEXT NOT NULL,
    input TEXT NOT NULL,
    output TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX runs_by_number ON runs (session, number);

CREATE UNIQUE INDEX runs_by_idempotency_key ON runs (session, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE INDEX runs_unfinished ON runs (session, number) WHERE status IN ('pending', 'running', 'paused');

-- In the order of their commits, so that new ones go to the end, whatever their session. That a session is there
-- is known from its counter, so it is not looked up for each event; whoever deletes it deletes its events.
CREATE TABLE events (
    key INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    timestamp REAL NOT NULL,
    run_id TEXT,
    data TEXT NOT NULL,
    metadata TEXT NOT NULL,
    schema_version INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX events_by_sequence ON events (session, sequence);

CREATE UNIQUE INDEX events_by_id ON events (session, id);
