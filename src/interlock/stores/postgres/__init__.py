"""A store in a PostgreSQL database, which any number of processes share.

*Callers never touch a connection.* One task writes, two read, one listens, each over its own; a caller
awaits a future, and one that is cancelled leaves nothing half done and no answer behind.

*Group commit.* What gathers while a transaction is under way shares the next: a handful of statements,
however many changes. Each is decided in memory on rows that are locked, so a refusal harms no neighbour.

*Rows are the truth.* Sequence numbers are given under the session's row lock, in the transaction that uses
them. NOTIFY only says that it is time to look.

*Nothing is left with a connection*: no settings, no locks. So a transaction pooler may stand between. Whether
one does is found out when the store is opened; then no statement is kept prepared, and there is no LISTEN.
"""

from interlock.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
