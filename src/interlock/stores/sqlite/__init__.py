"""A store in one SQLite file, owned by one process, one thread and one connection.

*Callers never touch the connection.* They put a job into a queue and await a future; a caller that
is cancelled drops its future, and the job is done all the same.

*One writer.* Only the thread here uses the connection, and a lock file keeps every other process
away. So the order of the calls is the order of the commits, and the bug that SQLite before 3.51.3
has where one connection writes while another one checkpoints cannot strike: the thread itself takes
the checkpoints, between two transactions.

*Group commit.* Jobs that gathered while the last commit was on its way to the disk share the next
transaction and are acknowledged after its commit; what one of them did wrong is undone, and told to
it alone. With ``synchronous=FULL``, what is acknowledged outlives the power.

*JSON is not the thread's business.* Records become rows, and rows records, in the caller's thread.
"""

from interlock.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
