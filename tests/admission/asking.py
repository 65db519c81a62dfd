"""How tests ask: in tasks that have come as far as they can."""

import asyncio
from typing import Any

import pytest

from interlock.admission.local import LocalAdmission
from interlock.admission.permit import Permit
from interlock.testing import idle

Task = asyncio.Task[Permit]


async def ask(admission: LocalAdmission, *names: str, **asked: Any) -> Task:
    """A task that awaits an acquire and has come as far as it can."""

    async def acquire() -> Permit:
        return await admission.acquire(*names, **asked)

    task = asyncio.create_task(acquire())
    await idle()
    return task


async def refused(task: Task, error: type[BaseException]) -> Any:
    with pytest.raises(error) as raised:
        await task
    return raised.value


def used(admission: LocalAdmission, name: str = "a") -> int:
    return admission.limits()[name].used
