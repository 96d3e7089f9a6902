"""Supervision: an actor that dies is replaced, with a back-off, and up to a limit.

The strategy is one_for_one: the others go on. ``Restarts`` decides, as a value; ``supervise`` acts.
An actor that dies too often is given up: the whole node then ends with an error, and whoever
started the node replaces that. Failures that a restart cannot mend (a missing bundle, a port in
use) are given up at once if the actor has never been ready; those that only a new process mends (a
card that is lost) always are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs
import trio

from runtime.actor import Actor
from runtime.errors import ActorDied
from runtime.mailbox import Mailbox

log = logging.getLogger(__name__)

Phase: TypeAlias = Literal["starting", "ready", "away", "ended"]


@attrs.frozen(kw_only=True)
class RestartPolicy:
    """When to restart what died, and when to give up.

    Erlang's supervisors have intensity and period; the back-off keeps an actor whose surroundings
    are broken for a second or two from using up its restarts at once.

    Attributes:
        most: Deaths within ``within_s`` seconds that are answered by a restart; one more is not.
        first_delay_s: Before the first restart; doubled for each further death in the period.
    """

    most: int = 5
    within_s: float = 30.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0


@attrs.frozen
class Restarts:
    """The deaths of one actor or node so far, and what follows from another one."""

    policy: RestartPolicy = RestartPolicy()
    deaths: tuple[float, ...] = ()

    def died(self, at: float) -> tuple[Restarts, float | None]:
        """Return the history with a death at ``at``, and what to do.

        Returns:
            The delay in seconds after which to restart, or None to give up.
        """
        recent = (*(death for death in self.deaths if at - death < self.policy.within_s), at)
        after = attrs.evolve(self, deaths=recent)
        if len(recent) > self.policy.most:
            return after, None
        delay = self.policy.first_delay_s * 2.0 ** (len(recent) - 1)
        return after, min(delay, self.policy.longest_delay_s)


class Returned(Exception):
    """An actor's ``run`` returned, and nobody had asked it to."""


@attrs.define(eq=False)
class _Start:
    """What an actor calls ``started`` on."""

    on_started: Callable[[], None]
    is_started: bool = False

    def started(self, value: None = None) -> None:
        """Note that the actor is ready.

        Raises:
            RuntimeError: It said so before, as trio's own does.
        """
        if self.is_started:
            raise RuntimeError("called 'started' twice on the same task status")
        self.is_started = True
        self.on_started()


async def supervise(
    mailbox: Mailbox,
    make: Callable[[], Actor],
    *,
    stopping: trio.Event,
    policy: RestartPolicy,
    hopeless: tuple[type[Exception], ...],
    fatal: tuple[type[Exception], ...] = (),
    on_phase: Callable[[Phase], None],
) -> None:
    """Run an actor, and its replacements, until one returns because it was asked to.

    Cancelling this ends the actor, and answers what it left behind.

    Args:
        mailbox: The actor's; it stays the same over restarts.
        make: Makes an actor; a failure in it is a death as well.
        stopping: Set when the actor was asked to end.
        policy: When to restart.
        hopeless: Failures that a restart does not mend: given up at once before the first time
            that the actor is ready.
        fatal: Failures that a restart in this process does not mend: given up at once.
        on_phase: Told of each change.

    Raises:
        ActorDied: It was given up; ``__cause__`` is what it died of.
    """
    restarts = Restarts(policy)
    was_ready = False
    try:
        while True:
            on_phase("starting")
            start = _Start(lambda: on_phase("ready"))
            try:
                await make().run(mailbox, task_status=start)
                if stopping.is_set():
                    return
                raise Returned(f"{mailbox.name} returned from run, though nobody had asked it to")
            except Exception as error:  # the seam at which every failure of an actor arrives
                cause = sole(error)
            was_ready = was_ready or start.is_started
            restarts, delay = restarts.died(trio.current_time())
            hopeless_now = fatal if was_ready else (*hopeless, *fatal)
            if stopping.is_set() or isinstance(cause, hopeless_now):
                delay = None
            if delay is None:
                raise ActorDied(mailbox.name, describe(cause)) from cause
            log.error(
                "%s died, restart in %.1f s: %s",
                mailbox.name,
                delay,
                describe(cause),
                exc_info=cause,
            )
            on_phase("away")
            mailbox.abandon("died", for_good=False)
            with trio.move_on_after(delay):
                await stopping.wait()
                return
            mailbox.reopen()
    finally:
        mailbox.abandon("has ended", for_good=True)
        on_phase("ended")


def sole(error: BaseException) -> BaseException:
    """Return the one exception in a group of one (of one ...), or the exception itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def describe(error: BaseException) -> str:
    """Return an exception as one line for a person."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
