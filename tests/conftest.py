"""Runs ``async def`` tests under trio: on a ``MockClock`` if they take ``autojump_clock``."""

from __future__ import annotations

import functools
import inspect

import pytest
import trio
import trio.testing

# No test waits this long for anything: what does hangs, and should say where.
_HANGS_AFTER_S = 60.0


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """The clock of the test's event loop; it jumps on whenever every task waits."""
    return trio.testing.MockClock(autojump_threshold=0)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    clocks = [value for value in arguments.values() if isinstance(value, trio.testing.MockClock)]
    test = functools.partial(pyfuncitem.obj, **arguments)

    async def bounded() -> None:
        if clocks:
            await test()
        else:
            with trio.fail_after(_HANGS_AFTER_S):
                await test()

    trio.run(bounded, clock=clocks[0] if clocks else None)
    return True
