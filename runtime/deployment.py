"""Deploys a bundle: takes a cluster that serves from one version of a model to the next.

Whoever wants the deployment coordinates it: the command (``actors.deploy``), or a service for its
own actors. It need not survive: what it does is a series of questions that may be asked again, all
that must outlive it is written down by the actors themselves, and a deployment that it leaves
behind is finished, or undone, by the next. A coordinator that were itself an actor would have to
be kept, found and restarted, and could do no more.

1. *Claim*: all actors of the model (gateways, shards, executors, its updater) are asked what they
   hold, the gateways first. One that obeys another deployment says so, and this one ends. Versions
   that nobody uses are given back.
2. *Load*: all load the bundle beside what they hold, on each machine one after the other, so that
   most of its cores go on serving. If one cannot, all give it back, and nothing has changed.
3. *Use*: once all have it, the gateways take it into use, each for the batches that follow. From
   the first of them on there is no way back, only forward: what fails is tried again for a while,
   and after that the cluster serves two versions, each request with one of them, until somebody
   deploys again.
4. *Drop*: gateways give the old version back when nothing of it is in flight; then the others do.

An actor that is restarted on the way comes back with what it held, both versions if need be.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import attrs
import trio

from kernels.bundle.load import load_bundle
from kernels.errors import BundleError
from runtime.actor import Ref
from runtime.errors import DeploymentFailed
from runtime.supervisor import sole
from runtime.topology import Topology
from transport.errors import DeadlineExceeded, Overloaded, RequestError, Unavailable
from transport.versions import (
    LEASE_S,
    DropVersion,
    EndDeployment,
    LoadVersion,
    UseVersion,
    VersionRequest,
    VersionState,
)

Say: TypeAlias = Callable[[str], None]
Question: TypeAlias = LoadVersion | UseVersion | DropVersion | VersionRequest | EndDeployment

# Between two looks at what takes a while: at first, and at most.
_FIRST_POLL_S: Final = 0.01
_POLL_S: Final = 0.2
_ASK_S: Final = 1.0
# Of silence, after which an actor is given up: enough for a node to be restarted.
_PATIENCE_S: Final = 30.0
# Of an actor that was never heard: there may be no cluster at all.
_FIRST_PATIENCE_S: Final = 5.0
_FAREWELL_S: Final = 2.0
# Of one actor: a bundle that ends its process must not use up its node's restarts.
_LOADS_MOST: Final = 2
# Of a percentage, for the lines that say how far it is.
_STEP: Final = 20


@attrs.frozen(kw_only=True)
class Outcome:
    """What a deployment came to.

    Attributes:
        version: The one that is served now.
        previous: Those that gateways served before; none if it was this one already.
    """

    version: str
    previous: tuple[str, ...]


def _silent(line: str) -> None:
    """Tell nobody."""


class Deployment:
    """One deployment of one bundle. ``run`` does it, once.

    Args:
        topology: The cluster's.
        ref: Finds its actors.
        model: Name of the model that the bundle is to serve.
        bundle: The bundle's folder; all machines of the cluster must have it at this place.
        say: Gets lines for a person.
        any_origin: Whether the bundle may be built from another model than the one in use was.
        without: Shards and executors that are left out, as their machines are down, say. One that
            comes back later is told by the gateways to load what they use.
        patience_s: How long an actor may be silent.

    Raises:
        DeploymentFailed: There is no such model, or none of those that are to be left out.
    """

    def __init__(
        self,
        topology: Topology,
        ref: Callable[[str], Ref],
        model: str,
        bundle: Path,
        *,
        say: Say = _silent,
        any_origin: bool = False,
        without: Collection[str] = (),
        patience_s: float = _PATIENCE_S,
    ) -> None:
        spec = topology.models.get(model)
        if spec is None:
            known = ", ".join(sorted(topology.models)) or "none"
            raise DeploymentFailed(f"there is no model {model!r}; there are {known}")
        if not topology.gateways:
            raise DeploymentFailed("the topology has no gateway")
        self._gateways = topology.gateways
        holders = dict.fromkeys((*spec.shards, *spec.executors))
        for name in without:
            if name not in holders:
                known = ", ".join(holders)
                raise DeploymentFailed(f"without: no shard or executor {name!r}; there are {known}")
        self._holders = tuple(name for name in holders if name not in without)
        self._updaters = topology.updaters(model)
        self._machines: dict[str, list[str]] = {}
        for actor in self._all:
            self._machines.setdefault(_machine(topology, actor), []).append(actor)
        self._ref = ref
        self._model = model
        self._bundle = bundle.resolve()
        self._say = say
        self._any_origin = any_origin
        self._patience_s = patience_s
        self._number = secrets.randbits(62) + 1
        self._claimed: list[str] = []
        self._version = ""
        self._origin = ""
        self._is_used = False

    async def run(self) -> Outcome:
        """Deploy.

        Raises:
            DeploymentFailed: It cannot be done, or was not finished; says why, and what serves.
        """
        try:
            manifest = (await trio.to_thread.run_sync(load_bundle, self._bundle)).manifest
        except (BundleError, OSError) as error:
            raise DeploymentFailed(f"{error}; nothing has changed") from error
        self._version, self._origin = manifest.version, manifest.model
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._remind)
                outcome = await self._deploy()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # the nursery is our own affair
            failure = sole(group)
            raise failure from failure.__cause__
        finally:
            with trio.move_on_after(_FAREWELL_S, shield=True):
                await self._each(self._all, self._end)
        return outcome

    @property
    def _all(self) -> tuple[str, ...]:
        return (*self._gateways, *self._holders, *self._updaters)

    async def _deploy(self) -> Outcome:
        states = await self._claim()
        used = {states[gateway].current for gateway in self._gateways}
        held = {version for state in states.values() for version in state.held}
        if used == held == {self._version}:
            return Outcome(version=self._version, previous=())
        self._is_used = self._version in used
        self._check_origin(states)
        held_first = {state.current for state in states.values()}
        for leftover in sorted(held - used - held_first - {self._version}):
            self._say(f"version {leftover[:12]}, which nobody uses, is given back")
            await self._drop(leftover)
        self._say(f"version {self._version[:12]} is loaded by {len(self._all)} actors")
        await self._load()
        self._say(f"version {self._version[:12]} is taken into use")
        self._is_used = True
        await self._each(self._gateways, self._use)
        await self._each((*self._holders, *self._updaters), self._use)
        for version in sorted((used | held_first) - {self._version}):
            self._say(f"version {version[:12]} is given back when nothing of it is in flight")
            await self._drop(version)
        return Outcome(version=self._version, previous=tuple(sorted(used - {self._version})))

    async def _remind(self) -> None:
        """Let no actor forget this deployment while it waits for others."""
        while True:
            await trio.sleep(LEASE_S / 3)
            await self._each(self._claimed, self._say_again)

    async def _say_again(self, actor: str) -> None:
        with suppress(RequestError):
            await self._ref(actor).ask(self._question(VersionRequest), budget=_ASK_S)

    # The steps

    async def _claim(self) -> dict[str, VersionState]:
        """Be the deployment that all actors obey; return how each stands."""
        states: dict[str, VersionState] = {}

        async def claim(actor: str) -> None:
            states[actor] = await self._ask(
                actor, self._question(VersionRequest), min(_FIRST_PATIENCE_S, self._patience_s)
            )
            self._claimed.append(actor)

        for gateway in self._gateways:  # in one order, so that of two deployments one is the first
            await claim(gateway)
        await self._each((*self._holders, *self._updaters), claim)
        return states

    def _check_origin(self, states: dict[str, VersionState]) -> None:
        built_from = states[self._gateways[0]].built_from
        if self._origin != built_from and not self._any_origin:
            raise DeploymentFailed(
                f"{self._bundle} was built from {self._origin!r}, and what serves "
                f"{self._model} from {built_from!r}: say so if that is meant; nothing has changed"
            )

    async def _load(self) -> None:
        """Have all load the bundle; if one cannot, have all give it back."""
        try:
            ready: set[str] = set()
            while len(ready) < len(self._all):
                await self._each(self._machines, self._load_on)
                # One that was restarted meanwhile may not have it.
                ready = {
                    actor
                    for actor in self._all
                    if (await self._ask(actor, self._question(VersionRequest))).state == "ready"
                }
        except BaseException:
            if not self._is_used:
                with trio.move_on_after(_FAREWELL_S, shield=True):
                    await self._each(self._all, self._take_back)
            raise

    async def _load_on(self, machine: str) -> None:
        for actor in self._machines[machine]:
            await self._load_at(actor)

    async def _load_at(self, actor: str) -> None:
        said, pause, n_begun = 0, _FIRST_POLL_S, 0
        while True:
            state = await self._ask(actor, self._question(VersionRequest))
            if state.state in ("absent", "failed") and n_begun < _LOADS_MOST:
                n_begun += 1
                question = self._question(LoadVersion, bundle=str(self._bundle))
                state = await self._ask(actor, question)
            if state.state == "absent":
                raise DeploymentFailed(
                    f"{actor}: has ended {n_begun} times while it loaded {self._bundle}; "
                    f"{self._what_serves()}"
                )
            if state.state == "ready":
                self._say(f"{actor}: loaded")
                return
            if state.state == "failed":
                raise DeploymentFailed(f"{actor}: {state.message}; {self._what_serves()}")
            if state.percent >= said + _STEP:
                said = state.percent - state.percent % _STEP
                self._say(f"{actor}: loading {said}%")
            await trio.sleep(pause)
            pause = min(2 * pause, _POLL_S)

    async def _use(self, actor: str) -> None:
        while True:
            state = await self._ask(actor, self._question(UseVersion))
            if state.current == self._version:
                return
            # It was restarted and could not load it again, or lost what it had written down.
            await self._load_at(actor)

    async def _drop(self, version: str) -> None:
        """Have the gateways give a version back, as soon as nobody waits for it; then the rest."""

        async def drop(actor: str) -> None:
            since, pause = trio.current_time(), _FIRST_POLL_S
            while True:
                state = await self._ask(actor, self._question(DropVersion, version))
                if version not in state.held:
                    return
                if trio.current_time() > since + self._patience_s:
                    raise DeploymentFailed(
                        f"{actor}: {state.n_in_flight} requests are still with version "
                        f"{version[:12]}, which is kept; {self._what_serves()}"
                    )
                await trio.sleep(pause)
                pause = min(2 * pause, _POLL_S)

        for actors in (self._gateways, self._updaters, self._holders):
            await self._each(actors, drop)

    async def _take_back(self, actor: str) -> None:
        with suppress(RequestError):
            await self._ref(actor).ask(self._question(DropVersion), budget=_FAREWELL_S)

    async def _end(self, actor: str) -> None:
        with suppress(RequestError):
            await self._ref(actor).ask(self._question(EndDeployment), budget=_FAREWELL_S)

    # Questions

    def _question(self, cls: type[Question], version: str | None = None, **more: str) -> Question:
        return cls(
            deployment=self._number,
            model=self._model,
            version=self._version if version is None else version,
            **more,
        )

    async def _ask(
        self, actor: str, question: Question, patience_s: float | None = None
    ) -> VersionState:
        """Ask until there is an answer, or there has been none for too long."""
        patience_s = self._patience_s if patience_s is None else patience_s
        since = trio.current_time()
        while True:
            try:
                answer = await self._ref(actor).ask(question, budget=_ASK_S)
            except (Unavailable, Overloaded, DeadlineExceeded) as error:
                if trio.current_time() > since + patience_s:
                    raise DeploymentFailed(
                        f"{actor} does not answer ({error}); {self._what_serves()}"
                    ) from error
                await trio.sleep(_POLL_S)
                continue
            except RequestError as error:
                raise DeploymentFailed(f"{actor}: {error}; {self._what_serves()}") from error
            if not isinstance(answer, VersionState):
                kind = type(answer).__name__
                raise DeploymentFailed(f"{actor} answers {kind}; {self._what_serves()}")
            if answer.deployment not in (0, self._number):
                raise DeploymentFailed(
                    f"{actor}: another deployment of {self._model} is under way (if it has died, "
                    f"it is forgotten after {LEASE_S:g} s); {self._what_serves()}"
                )
            return answer

    async def _each(self, actors: Iterable[str], step: Callable[[str], Awaitable[None]]) -> None:
        """Do a step with all actors at once; the first failure ends it."""
        failures: list[DeploymentFailed] = []

        async def one(actor: str, scope: trio.CancelScope) -> None:
            try:
                await step(actor)
            except DeploymentFailed as failure:
                failures.append(failure)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            for actor in actors:
                nursery.start_soon(one, actor, nursery.cancel_scope)
        if failures:
            raise failures[0]

    def _what_serves(self) -> str:
        if self._is_used:
            return "the new version is in use, perhaps not everywhere: deploy again to finish"
        return "nothing has changed"


def _machine(topology: Topology, actor: str) -> str:
    """Return what tells the machine of an actor from others: the host of its node's address."""
    address = topology.address(topology.node_of(actor).name)
    scheme, _, rest = address.partition("://")
    return "" if scheme == "ipc" else rest.rpartition(":")[0]
