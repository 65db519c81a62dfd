"""What a server and the clients of its admission say to each other, over one WebSocket for each process.

A message is a list of all that one step of an event loop had to say, as JSON. From the client a list of
operations, each a list that begins with its word; from the server ``[heard, answers]``, where *heard* counts
the operations of this connection that it has carried out.

| client | |
|---|---|
| ``hello`` version, lease, client | the first word; ``hello`` with the server's *epoch*, new at every start |
| ``acquire`` ask, id, names, more | ``queued`` ask, since; ``granted`` ask, fence, granted_ms, left_ms |
| ``withdraw`` ask, id | none; a permit that was granted meanwhile is given back |
| ``release`` id, fence, outcome | none; a fence of 0 means whichever |
| ``touch`` id, fence | none |
| ``hold`` id, fence, names, owner, parent, lease, adopt | ``held`` id, fence, left_ms, or ``ended`` |
| ``lend`` id, fence | none |
| ``reclaim`` ask, id, fence, timeout | ``done`` ask, [fence, granted_ms], or ``error`` |
| ``set_limit`` / ``remove_limit`` / ``release_owner`` ask, ... | ``done`` ask, value, or ``error`` |
| ``gate`` ask, order, provider, more, reason | ``done`` ask, value, or ``error`` |
| ``view`` ask, whole, seen | ``view`` ask, number, at, view or null when that is what was *seen* |

Unasked the server says ``ended`` id, fence, how: the permit was taken away, or released by somebody else.

*ask* is the client's number for what it wants an answer to. *id* is the key of a permit in the server's
kernel: the caller's own, or one that the client made, so that to ask again after a lost answer is the same
request.
``error`` carries the name of the class, the code, the message and the details.
"""

from __future__ import annotations

from typing import Any, Final

from interlock import errors
from interlock.errors import InterlockError

VERSION: Final = 1
PATH: Final = "/permits/connect"
RENEW_PATH: Final = "/permits/renew"
GENERATED: Final = "permit_"
"""How the ids of permits begin whose holders named none."""
GENERATED_LENGTH: Final = len(GENERATED) + 32


def is_generated(key: str | None) -> bool:
    """Whether *key* is an id that was made for a permit without a key."""
    return key is not None and len(key) == GENERATED_LENGTH and key.startswith(GENERATED)


def error_to_wire(error: InterlockError) -> tuple[str, str, str, dict[str, Any]]:
    """Class, code, message and details of *error*."""
    return type(error).__name__, error.code, error.message, error.details


def error_from_wire(name: str, code: str, message: str, details: dict[str, Any]) -> InterlockError:
    """The error that was raised at the other end, or its root where this version has no such class."""
    kind = getattr(errors, name, InterlockError)
    if not (isinstance(kind, type) and issubclass(kind, InterlockError)):
        kind = InterlockError
    error = kind(message, code=code)
    error.details = details
    return error
