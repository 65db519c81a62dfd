"""Every error that Interlock raises: one root, one class per thing that a caller can do about it.

Each carries a stable ``code`` (the originals' names where they had one), ``details`` for programs,
``retryable`` for loops, and the HTTP ``status`` under which the control plane answers it, so that no
second table exists at the edge.
"""

from __future__ import annotations

from typing import Any, ClassVar


class InterlockError(Exception):
    """The root of everything that Interlock raises on purpose."""

    default_code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.details = details


class ValidationError(InterlockError, ValueError):
    """An argument is wrong; the message names it, what it was and what is allowed."""

    default_code = "validation_error"
    status = 400


class InvalidOperation(InterlockError):
    """The state of the thing does not allow this."""

    default_code = "invalid_operation"
    status = 409


class InvalidStatus(InterlockError):
    """The session or run has a status in which this cannot be done."""

    default_code = "invalid_status"
    status = 409


class CapabilityNotSupported(InterlockError):
    """The agent does not offer this."""

    default_code = "capability_not_supported"
    status = 409


class LimitExceeded(InterlockError):
    """There is no room and no wait was asked for."""

    default_code = "limit_exceeded"
    retryable = True
    status = 429


class QueueFull(InterlockError):
    """As many wait already as may wait."""

    default_code = "queue_full"
    retryable = True
    status = 429


class AcquireTimeout(InterlockError, TimeoutError):
    """The deadline passed while waiting; the message names what blocked and who held it."""

    default_code = "timeout"
    retryable = True
    status = 504


class DeadlockDetected(InterlockError):
    """This nested claim would close a circle in which everyone waits."""

    default_code = "deadlock"
    status = 409


class PermitLost(InterlockError):
    """The lease ran out or the permit was taken back; the work may no longer count on it."""

    default_code = "permit_lost"
    status = 409


class StaleFence(InterlockError):
    """A later holder exists; this late write changes nothing."""

    default_code = "stale_fence"
    status = 409


class PoolExhausted(InterlockError):
    """Every agent is out and no wait was asked for."""

    default_code = "no_agents"
    retryable = True
    status = 429


class PoolClosed(InterlockError):
    """The pool hands out nothing any more."""

    default_code = "pool_closed"
    status = 503


class AgentStartFailed(InterlockError):
    """The factory of the pool could not start an agent."""

    default_code = "failed_to_start_agent"
    retryable = True
    status = 503


class AgentLost(InterlockError):
    """The agent died, or said something that cannot be understood, in the middle of its work."""

    default_code = "agent_lost"
    retryable = True
    status = 502


class ProviderFailed(InterlockError):
    """A provider gave no answer, refused, or said something that cannot be understood.

    ``code`` is ``provider_error``, ``provider_rate_limited`` or ``provider_timeout``.
    """

    default_code = "provider_error"
    status = 502


class SessionNotFound(InterlockError):
    """No session has this id."""

    default_code = "session_not_found"
    status = 404


class RunNotFound(InterlockError):
    """No run has this id."""

    default_code = "run_not_found"
    status = 404


class KeyReused(InterlockError):
    """The idempotency key belongs to something else that was asked for."""

    default_code = "idempotency_key_reused"
    status = 422


class RunFailed(InterlockError):
    """The awaited run ended with an error of its own."""


class RunTimedOut(RunFailed, TimeoutError):
    """The awaited run outlived its own ``timeout``."""

    default_code = "timeout"


class RunCancelled(InterlockError):
    """The awaited run was cancelled."""

    default_code = "cancelled"
    status = 409


class RunInterrupted(InterlockError):
    """The awaited run was interrupted."""

    default_code = "interrupted"
    status = 409


class StoreError(InterlockError):
    """What should be remembered could not be read or written."""

    default_code = "storage_error"
    retryable = True
    status = 507


class Draining(InterlockError):
    """Work in hand is being finished; nothing new is taken."""

    default_code = "draining"
    retryable = True
    status = 503


class Unavailable(InterlockError):
    """The part that would answer is closed or out of reach."""

    default_code = "unavailable"
    retryable = True
    status = 503
