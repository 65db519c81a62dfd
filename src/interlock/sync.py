"""The same objects for threads: every call blocks, and an event loop in a thread of its own does the work.

    from interlock import ProviderGate, sync

    with sync.start(lambda: ProviderGate()) as gate:
        gate.set_limit("openai", 4)
        with gate.acquire("openai", "conv-1", timeout=30) as permit:
            ...

A thread sends an errand to the loop and waits for its answer. Which of the two ends first, the errand or the
waiting (Ctrl-C), is decided once, by the future between them: either the thread has the answer, or the loop
learns that nobody takes it and undoes it. So an interrupted acquire leaks nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from interlock.admission.local import LocalAdmission
from interlock.admission.permit import Acquisition, Permit
from interlock.errors import InvalidOperation, Unavailable, ValidationError
from interlock.provider.gate import ProviderGate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


class _Errand:
    """Something to do on the loop, and the thread that waits for it; *undo* is for what nobody takes."""

    def __init__(
        self, work: Callable[[], Any], undo: Callable[[Any], object] | None, *, lasting: bool
    ) -> None:
        self._work = work
        self._undo = undo
        self._lasting = lasting
        self._task: asyncio.Task[Any] | None = None
        self._undoing: asyncio.Future[Any] | None = None
        self.answer: Future[Any] = Future()

    def set_out(self) -> None:
        """On the loop: begin."""
        self._task = asyncio.get_running_loop().create_task(self._do())
        self._task.add_done_callback(self._done)

    async def _do(self) -> Any:
        result = self._work()
        return await result if inspect.isawaitable(result) else result

    def _done(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if not self.answer.set_running_or_notify_cancel():  # the thread has left before
            if not task.cancelled() and error is None:
                self._give_back(task.result())
        elif task.cancelled():
            self.fail()
        elif error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: it does not take the answer, which is an error or will be undone."""
        if self._lasting:
            return
        with suppress(RuntimeError):  # the loop is closed
            if self.answer.cancel():
                loop.call_soon_threadsafe(self._call_off)
            elif self.answer.exception() is None:
                loop.call_soon_threadsafe(self._give_back, self.answer.result())

    def _call_off(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _give_back(self, result: Any) -> None:
        undoing = None if self._undo is None else self._undo(result)
        if inspect.isawaitable(undoing):
            self._undoing = asyncio.ensure_future(undoing)

    def fail(self) -> None:
        """The loop ends before the errand."""
        with suppress(Exception):  # answered already
            self.answer.set_exception(Unavailable("the loop behind this was closed"))


class LoopThread:
    """An event loop that other threads call: one in a thread of its own, or *loop*, which runs already."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._process = os.getpid()
        self._errands: set[_Errand] = set()
        self._thread: threading.Thread | None = None
        if loop is None:
            started: Future[asyncio.AbstractEventLoop] = Future()
            # A daemon: whoever forgets to close it can still leave the interpreter.
            self._thread = threading.Thread(target=self._turn, args=(started,), name="interlock", daemon=True)
            self._thread.start()
            loop = started.result()
        elif not loop.is_running():
            raise ValidationError("loop does not run; give one that does, or none")
        self.loop = loop

    def run(
        self,
        work: Callable[[], Any],
        *,
        undo: Callable[[Any], object] | None = None,
        lasting: bool = False,
    ) -> Any:
        """What *work* gives, called (and awaited) on the loop. Ctrl-C cancels it, unless it is *lasting*.

        *undo* is called on the loop with a result that came too late to be taken. Raises what *work* raises,
        `InvalidOperation` in a child process or in a thread that runs an event loop, `Unavailable` when the
        loop is closed.
        """
        self._check()
        errand = _Errand(work, undo, lasting=lasting)
        self._errands.add(errand)
        try:
            try:
                self.loop.call_soon_threadsafe(errand.set_out, context=contextvars.copy_context())
            except RuntimeError:
                raise Unavailable("the loop behind this was closed") from None
            return errand.answer.result()
        except BaseException:
            errand.leave(self.loop)
            raise
        finally:
            self._errands.discard(errand)

    @property
    def in_child(self) -> bool:
        """Whether this is a forked child: the thread of the loop is not among what it inherited."""
        return os.getpid() != self._process

    def _check(self) -> None:
        if self.in_child:
            raise InvalidOperation(
                f"this was started in process {self._process} and does not work in its child"
                f" {os.getpid()}: start another one after the fork"
            )
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise InvalidOperation(
                "a blocking call would stop the event loop of this thread: await the object itself, or call"
                " from another thread (asyncio.to_thread)"
            )

    def close(self) -> None:
        """Cancel what is under way and end the loop, if it is its own."""
        if self._thread is None or self.in_child:
            return
        with suppress(RuntimeError):  # closed before
            self.loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _turn(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        async def main() -> None:
            self._stopping = asyncio.Event()
            started.set_result(asyncio.get_running_loop())
            await self._stopping.wait()

        try:
            asyncio.run(main())
        finally:
            # What was sent after the last turn of the loop has nobody else to answer it.
            for errand in list(self._errands):
                errand.fail()


class Waiting(Generic[T]):
    """What an acquire returns: ``with … as permit:``, or ``permit = ….wait()``. Before, nothing is asked."""

    def __init__(self, facade: Facade[Any], ask: Callable[[], Any]) -> None:
        self._facade = facade
        self._ask = ask

    def wait(self) -> T:
        """Block until it is there; giving it back is the caller's to do."""
        return cast("T", self._facade.run(lambda _: self._ask(), undo=self._facade._return))

    def __enter__(self) -> T:
        async def leave(_: object) -> None:
            await self._asked.__aexit__(None, None, None)

        return cast("T", self._facade.run(self._enter, undo=leave))

    async def _enter(self, _: object) -> Any:
        self._asked = self._ask()
        return await self._asked.__aenter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        async def leave(_: object) -> None:
            await self._asked.__aexit__(exc_type, exc, tb)

        if not self._facade.in_child:  # what the parent holds is the parent's to give back
            self._facade.run(leave, lasting=True)


class Facade(Generic[T]):
    """Any object of Interlock for threads: its coroutine methods block, its acquisitions are `Waiting`.

    Every attribute is read, and every method called, on the loop's thread, and so is every function that a
    caller hands to it. Leaving ``with`` ends the object, and the loop if that is its own.
    """

    def __init__(
        self, thread: LoopThread, target: T, end: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self._thread = thread
        self._target = target
        self._end = end

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the object lives; what shares its admission is started there as well."""
        return self._thread.loop

    @property
    def in_child(self) -> bool:
        """Whether this is a forked child, in which it does not work."""
        return self._thread.in_child

    @overload
    def run(self, work: Callable[[T], Awaitable[R]], **how: Any) -> R: ...
    @overload
    def run(self, work: Callable[[T], R], **how: Any) -> R: ...
    def run(self, work: Callable[[T], Any], **how: Any) -> Any:
        """What *work* gives for the object itself, in one go on the loop; *how*: see `LoopThread.run`."""
        return self._thread.run(lambda: work(self._target), **how)

    def close(self) -> None:
        """End the object; closing twice is closing once. Those who wait get what it gives them at its end."""
        end, self._end = self._end, None
        if end is None or self.in_child:
            return
        try:
            self._thread.run(end, lasting=True)
        finally:
            self._thread.close()

    def __enter__(self: R) -> R:
        return self

    def __exit__(self, *exit_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        value = self.run(lambda target: getattr(target, name))
        return partial(self._called, value) if callable(value) else value

    def _called(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def work(_: T) -> Any:
            result = method(*args, **kwargs)
            kind = type(result)
            acquired = hasattr(kind, "__await__") and hasattr(kind, "__aenter__")
            return Waiting(self, lambda: result) if acquired else result

        return self.run(work, undo=self._return)

    def _return(self, result: object) -> object:
        """Give back what an interrupted call got."""
        if isinstance(result, Permit):
            return result.release("cancelled")
        checkin = getattr(self._target, "checkin", None)
        return None if checkin is None or result is None else checkin(result)

    def __repr__(self) -> str:
        return f"<sync {self._target!r}>"


def _plain(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[Facade[T], P], R]:
    @wraps(method)
    def call(self: Facade[T], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.run(lambda target: method(target, *args, **kwargs), undo=self._return)

    return call


def _awaited(method: Callable[Concatenate[T, P], Awaitable[R]]) -> Callable[Concatenate[Facade[T], P], R]:
    @wraps(method)
    def call(self: Facade[T], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.run(lambda target: method(target, *args, **kwargs))

    return call


def _acquired(
    method: Callable[Concatenate[T, P], Acquisition],
) -> Callable[Concatenate[Facade[T], P], Waiting[Permit]]:
    @wraps(method)
    def call(self: Facade[T], /, *args: P.args, **kwargs: P.kwargs) -> Waiting[Permit]:
        return Waiting(self, lambda: method(self._target, *args, **kwargs))

    return call


class Gate(Facade[ProviderGate]):
    """`ProviderGate` for threads."""

    acquire = _acquired(ProviderGate.acquire)
    report_rate_limit = _plain(ProviderGate.report_rate_limit)
    pause = _plain(ProviderGate.pause)
    resume = _plain(ProviderGate.resume)
    set_limit = _awaited(ProviderGate.set_limit)
    remove_limit = _awaited(ProviderGate.remove_limit)
    get_limit = _plain(ProviderGate.get_limit)
    limits = _plain(ProviderGate.limits)
    set_cooldown = _awaited(ProviderGate.set_cooldown)
    get_cooldown = _plain(ProviderGate.get_cooldown)
    cooldowns = _plain(ProviderGate.cooldowns)
    status = _plain(ProviderGate.status)
    statuses = _plain(ProviderGate.statuses)


class Admission(Facade[LocalAdmission]):
    """`LocalAdmission` for threads."""

    acquire = _acquired(LocalAdmission.acquire)
    try_acquire = _plain(LocalAdmission.try_acquire)
    set_limit = _awaited(LocalAdmission.set_limit)
    remove_limit = _awaited(LocalAdmission.remove_limit)
    release_owner = _awaited(LocalAdmission.release_owner)
    limits = _plain(LocalAdmission.limits)
    waiting = _plain(LocalAdmission.waiting)
    holders = _plain(LocalAdmission.holders)
    explain = _plain(LocalAdmission.explain)
    snapshot = _plain(LocalAdmission.snapshot)


_FACADES: dict[type, type[Facade[Any]]] = {ProviderGate: Gate, LocalAdmission: Admission}


@overload
def start(make: Callable[[], ProviderGate], *, loop: asyncio.AbstractEventLoop | None = None) -> Gate:
    """A gate."""


@overload
def start(make: Callable[[], LocalAdmission], *, loop: asyncio.AbstractEventLoop | None = None) -> Admission:
    """An admission."""


@overload
def start(
    make: Callable[[], T | Awaitable[T]], *, loop: asyncio.AbstractEventLoop | None = None
) -> Facade[T]:
    """Anything else."""


def start(make: Callable[[], Any], *, loop: asyncio.AbstractEventLoop | None = None) -> Facade[Any]:
    """A facade over what *make* returns, on a loop in a thread of its own, or on *loop*, which runs already.

    *make* is called on that loop; what has to be entered is entered there, and left by `Facade.close`. What
    shares an admission goes to one loop: ``start(…, loop=gate.loop)``.
    """
    thread = LoopThread(loop)

    async def begin() -> tuple[Any, Callable[[], Awaitable[object]]]:
        target = make()
        if inspect.isawaitable(target):
            target = await target
        if hasattr(type(target), "__aenter__"):
            target = await target.__aenter__()
            return target, lambda: target.__aexit__(None, None, None)
        return target, getattr(target, "aclose", _nothing)

    try:
        target, end = thread.run(begin, undo=lambda begun: begun[1]())
    except BaseException:
        thread.close()
        raise
    return _facade(thread, target, end)


@overload
def over(target: ProviderGate, loop: asyncio.AbstractEventLoop) -> Gate:
    """A gate."""


@overload
def over(target: LocalAdmission, loop: asyncio.AbstractEventLoop) -> Admission:
    """An admission."""


@overload
def over(target: T, loop: asyncio.AbstractEventLoop) -> Facade[T]:
    """Anything else."""


def over(target: Any, loop: asyncio.AbstractEventLoop) -> Facade[Any]:
    """A facade over *target*, which lives on the running *loop* and stays there when the facade is closed.

    For the worker threads of an asynchronous program.
    """
    return _facade(LoopThread(loop), target, None)


def _facade(thread: LoopThread, target: Any, end: Callable[[], Awaitable[object]] | None) -> Facade[Any]:
    kind = next((_FACADES[base] for base in type(target).__mro__ if base in _FACADES), Facade)
    return kind(thread, target, end)


async def _nothing() -> None: ...
