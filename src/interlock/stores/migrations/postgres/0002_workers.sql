-- Who holds a session: a worker whose lease runs. The fence counts its holders; only the present one starts runs.
ALTER TABLE interlock.sessions ADD COLUMN held_by text, ADD COLUMN fence bigint NOT NULL DEFAULT 0;

CREATE INDEX sessions_held ON interlock.sessions (held_by) WHERE held_by IS NOT NULL;

-- All times here are those of the database: the clocks of the workers take no part in who is alive.
CREATE TABLE interlock.workers (
    id text PRIMARY KEY,
    host text NOT NULL,
    pid bigint NOT NULL,
    agents text[] NOT NULL,
    started_at double precision NOT NULL,
    draining boolean NOT NULL,
    seen_at timestamptz NOT NULL,
    lease_until timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE interlock.wishes (
    key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session bigint NOT NULL REFERENCES interlock.sessions ON DELETE CASCADE,
    run_id text COLLATE "C" NOT NULL,
    verb text NOT NULL CHECK (verb IN ('cancel', 'interrupt', 'pause', 'resume')),
    wished_at timestamptz NOT NULL,
    answered_at timestamptz,
    error_code text,
    error_message text
);

CREATE INDEX wishes_open ON interlock.wishes (session, key) WHERE answered_at IS NULL;
