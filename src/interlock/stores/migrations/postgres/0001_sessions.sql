-- Settings, sessions, their runs and their logs of events. What is JSON is kept as its text, times as seconds since
-- the epoch. Texts compare by their bytes: ids are no words of any language.
CREATE TABLE interlock.settings (
    key text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

-- What changes with every event is here too: the lock on this row is what orders all writes of a session.
CREATE TABLE interlock.sessions (
    key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    status text NOT NULL CHECK (status IN ('pending', 'active', 'paused', 'completed', 'failed', 'cancelled')),
    agent_id text,
    max_concurrent_runs bigint NOT NULL,
    max_queued_runs bigint NOT NULL,
    collision text NOT NULL CHECK (collision IN ('enqueue', 'reject', 'interrupt', 'rollback')),
    metadata text NOT NULL,
    tags text NOT NULL,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    last_sequence bigint NOT NULL DEFAULT 0,
    runs bigint NOT NULL DEFAULT 0,
    hidden_at double precision
) WITH (fillfactor = 70);

CREATE INDEX sessions_by_creation ON interlock.sessions (created_at, id) WHERE hidden_at IS NULL;

CREATE TABLE interlock.runs (
    key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session bigint NOT NULL REFERENCES interlock.sessions ON DELETE CASCADE,
    id text COLLATE "C" NOT NULL UNIQUE,
    status text NOT NULL CHECK (
        status IN ('pending', 'running', 'paused', 'completed', 'failed', 'cancelled', 'interrupted', 'timeout')
    ),
    attempt bigint NOT NULL,
    number bigint NOT NULL,
    priority bigint NOT NULL,
    timeout double precision,
    retry text,
    idempotency_key text COLLATE "C",
    submitted_at double precision NOT NULL,
    started_at double precision,
    ended_at double precision,
    waited double precision,
    token_usage text NOT NULL,
    metadata text NOT NULL,
    error text NOT NULL,
    input text NOT NULL,
    output text NOT NULL,
    CONSTRAINT runs_by_number UNIQUE (session, number)
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX runs_by_idempotency_key ON interlock.runs (session, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE INDEX runs_unfinished ON interlock.runs (session, number) WHERE status IN ('pending', 'running', 'paused');

-- No reference to the session: it was locked by whoever writes here, and whoever deletes it deletes its events.
CREATE TABLE interlock.events (
    session bigint NOT NULL,
    sequence bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    type text NOT NULL,
    "timestamp" double precision NOT NULL,
    run_id text COLLATE "C",
    data text NOT NULL,
    metadata text NOT NULL,
    schema_version integer NOT NULL,
    PRIMARY KEY (session, sequence)
);

CREATE UNIQUE INDEX events_by_id ON interlock.events (session, id);

-- The last transaction of everyone who writes, in that transaction: whoever lost the answer to a COMMIT looks here.
CREATE TABLE interlock.writers (
    id text PRIMARY KEY,
    last bigint NOT NULL,
    at timestamptz NOT NULL
) WITH (fillfactor = 50);
