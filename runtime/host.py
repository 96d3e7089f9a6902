"""The actors of one process: their mailboxes, contexts and references, and their life together.

A host is what a node and an embedded service have in common. It finds no classes and opens no
sockets: factories and references to actors elsewhere are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs
import trio

from runtime.actor import Actor, Context, Ref
from runtime.deployed import Deployed, Deployments
from runtime.errors import ActorDied, StartError
from runtime.mailbox import Mailbox
from runtime.refs import LocalRef
from runtime.supervisor import Phase, RestartPolicy, supervise
from runtime.topology import ActorSpec, Topology

Factory: TypeAlias = Callable[[Context], Actor]
Report: TypeAlias = Callable[[str, Phase, float], None]
"""Called with an actor's name, its phase, and how far its warming up has come, 0 to 1."""

# What an actor that was asked to end may still do after its time: the answers it left behind.
_CANCEL_GRACE_S: Final = 1.0


def _silent(actor: str, phase: Phase, progress: float) -> None:
    """Report to nobody."""


@attrs.define(eq=False, kw_only=True)
class _Resident:
    """An actor of this process, over all its lives; also what it sees of the host: its context."""

    host: Host
    spec: ActorSpec
    factory: Factory
    mailbox: Mailbox
    drains_itself: bool
    phase: Phase = "starting"
    stopping: trio.Event = attrs.field(factory=trio.Event)
    ready: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def topology(self) -> Topology:
        return self.host.topology

    @property
    def options(self) -> Mapping[str, Any]:
        return self.spec.options

    def ref(self, actor: str) -> Ref:
        return self.host.ref(actor)

    def deployed(self, model: str) -> Deployed | None:
        return self.host.deployments.get(self.name, model)

    async def keep_deployed(self, model: str, deployed: Deployed) -> None:
        async with self.host.writing:
            await trio.to_thread.run_sync(self.host.deployments.put, self.name, model, deployed)

    def report_ready(self, progress: float) -> None:
        self.host.report(self.name, self.phase, progress)

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        if phase == "ready":
            self.ready.set()
        elif phase == "ended":
            self.ended.set()
        self.host.report(self.name, phase, 1.0 if phase == "ready" else 0.0)

    def ask_to_end(self) -> None:
        self.stopping.set()
        if not self.drains_itself or self.phase != "ready":
            self.mailbox.close()


class Host:
    """Runs actors under supervision, and finds actors by name."""

    def __init__(
        self,
        topology: Topology,
        factories: Mapping[str, Factory],
        *,
        remote: Callable[[str], Ref] | None = None,
        deployments: Deployments | None = None,
        policy: RestartPolicy | None = None,
        hopeless: tuple[type[Exception], ...] = (StartError,),
        fatal: tuple[type[Exception], ...] = (),
        report: Report = _silent,
    ) -> None:
        """Make the mailboxes, which take messages from now on; ``run`` starts the actors.

        Args:
            topology: The whole cluster.
            factories: For each actor of this process, in the order in which they stop.
            remote: Makes a reference to an actor that is not in ``factories``.
            deployments: What was deployed on actors of this process; None to begin as the
                topology says, and to keep what is deployed for as long as the process lives.
            policy: When to restart an actor.
            hopeless: Failures at the start that a restart does not mend.
            fatal: Failures at any time that only a new process mends.
            report: Told of each change.
        """
        self.topology = topology
        self.report = report
        self.deployments = deployments or Deployments(topology)
        self.writing = trio.Lock()
        self._remote = remote
        self._policy = policy or RestartPolicy()
        self._hopeless = hopeless
        self._fatal = fatal
        self._failure: ActorDied | None = None
        self._residents: dict[str, _Resident] = {}
        self._refs: dict[str, Ref] = {}
        for name, factory in factories.items():
            spec = next(a for a in topology.node_of(name).actors if a.name == name)
            mailbox = Mailbox(name, spec.mailbox)
            self._residents[name] = _Resident(
                host=self,
                spec=spec,
                factory=factory,
                mailbox=mailbox,
                drains_itself=bool(getattr(factory, "drains_itself", False)),
            )
            self._refs[name] = LocalRef(mailbox)

    def ref(self, name: str) -> Ref:
        """Return the reference to an actor of the cluster: the same object each time.

        Raises:
            KeyError: The topology has no actor of that name.
        """
        ref = self._refs.get(name)
        if ref is None:
            self.topology.node_of(name)  # raises KeyError
            if self._remote is None:
                raise KeyError(f"actor {name!r} is not in this process")
            ref = self._refs[name] = self._remote(name)
        return ref

    def mailbox(self, name: str) -> Mailbox | None:
        """Return the mailbox of an actor of this process, or None if it is not here."""
        resident = self._residents.get(name)
        return resident.mailbox if resident is not None else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the actors until all were stopped; started once each has been ready.

        Raises:
            ActorDied: One was given up. The others were cancelled.
        """
        async with trio.open_nursery() as nursery:
            for resident in self._residents.values():
                nursery.start_soon(self._supervise, resident, nursery.cancel_scope)
            for resident in self._residents.values():
                await resident.ready.wait()
            task_status.started()
        if self._failure is not None:
            raise self._failure

    async def stop(self, within: float) -> bool:
        """Stop the actors one after the other, in their order; cancel those that take too long.

        Args:
            within: Seconds that they have, all together.

        Returns:
            Whether all of them ended by themselves.
        """
        deadline = trio.current_time() + within
        clean = True
        for resident in self._residents.values():
            resident.ask_to_end()
            resident.scope.deadline = min(resident.scope.deadline, deadline)
            with trio.move_on_at(deadline + _CANCEL_GRACE_S):
                await resident.ended.wait()
            clean = clean and not resident.scope.cancelled_caught and resident.ended.is_set()
        return clean

    async def _supervise(self, resident: _Resident, all_of_them: trio.CancelScope) -> None:
        try:
            with resident.scope:
                await supervise(
                    resident.mailbox,
                    lambda: resident.factory(resident),
                    stopping=resident.stopping,
                    policy=self._policy,
                    hopeless=self._hopeless,
                    fatal=self._fatal,
                    on_phase=resident.enter,
                )
        except ActorDied as death:
            self._failure = self._failure or death
            all_of_them.cancel()
        # Actors that were stopped before they were ever ready do not hold up the start for good.
        resident.ready.set()
