"""Runs ``async def`` tests under trio, on a ``MockClock`` if they take ``autojump_clock``; skips
those that need a card where there is none, or lets them fail there: ``--require-gpu``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect

import pytest
import trio
import trio.testing

from kernels import _cuda

# Tests run in several processes at once: how long an example takes says nothing. Those on a card
# need no hypothesis.
with contextlib.suppress(ImportError):
    import hypothesis

    hypothesis.settings.register_profile(
        "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("untimed")

# No test waits this long for anything: what does hangs, and should say where.
_HANGS_AFTER_S = 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this suite."""
    parser.addoption(
        "--require-gpu", action="store_true", help="fail what would be skipped for want of a card"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a card if there is none."""
    if item.get_closest_marker("gpu") is None:
        return
    problem = _cuda.available()
    if problem is not None and item.config.getoption("--require-gpu"):
        pytest.fail(f"needs a card: {problem}", pytrace=False)
    elif problem is not None:
        pytest.skip(f"needs a card: {problem}")


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
