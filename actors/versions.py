"""The versions of its models that an actor holds, and its part in their deployment.

An actor opens at its start what was deployed on it last, else what the topology says. While it
serves, a bundle is opened beside that, in a thread, when a deployment says so; taken into use; and
the old one is given back. What is held is written down before anybody is told of it, so a restart
at any moment comes back with all that others may count on.

The one who deploys is ``runtime.deployment``; the messages are those of ``transport.versions``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

import attrs
import trio

from kernels.bundle.load import Bundle, load_bundle
from kernels.errors import BundleError, DeviceLost, KernelsError
from runtime.actor import Context, Envelope, Reply
from runtime.deployed import Deployed
from runtime.errors import NodeError
from runtime.memory import give_back
from runtime.supervisor import describe
from transport.messages import ErrorReply
from transport.versions import (
    LEASE_S,
    DropVersion,
    EndDeployment,
    LoadVersion,
    UseVersion,
    VersionRequest,
    VersionState,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
Progress: TypeAlias = Callable[[float], None]
Question: TypeAlias = LoadVersion | UseVersion | DropVersion | VersionRequest | EndDeployment
QUESTIONS: Final = (LoadVersion, UseVersion, DropVersion, VersionRequest, EndDeployment)

# What is wrong with bundles, as far as we know it.
_REFUSALS: Final = (KernelsError, NodeError, OSError)


@attrs.define
class Lease:
    """Which deployment of a model an actor obeys: the first to speak, until it is silent."""

    deployment: int = 0
    until: float = 0.0

    def holder(self, now: float) -> int:
        """Return the number of the deployment under way, 0 if there is none."""
        return self.deployment if now < self.until else 0

    def claim(self, deployment: int, now: float) -> bool:
        """Hear a deployment; return whether it is the one to be obeyed."""
        if self.holder(now) not in (0, deployment):
            return False
        self.deployment, self.until = deployment, now + LEASE_S
        return True

    def end(self) -> None:
        """Forget it."""
        self.until = 0.0


@attrs.define(eq=False)
class _Entry(Generic[T]):
    """One version of a model.

    Attributes:
        deployment: In whose name it was loaded.
        held: What was opened; None before.
        is_ready: Whether it may be used: it was opened and written down, and is not given back.
        is_wanted: False once it is to be dropped.
        problem: Why it failed.
    """

    bundle: Path
    deployment: int = 0
    held: T | None = None
    version: str = ""
    built_from: str = ""
    share: float = 0.0
    is_ready: bool = False
    is_wanted: bool = True
    problem: str = ""

    @property
    def state(self) -> str:
        if self.problem:
            return "failed"
        return "ready" if self.is_ready else "loading"


def _nothing(*_: object) -> int:
    return 0


async def _forget(held: object) -> None:
    """Leave it to whoever still holds a reference."""


class Versions(Generic[T]):
    """What an actor holds of its models, by version.

    Attributes:
        ready: What may be used, by model and version.
        current: The version in use, by model.
    """

    def __init__(
        self,
        context: Context,
        models: Sequence[str],
        open_version: Callable[[str, Bundle, Progress], T],
        *,
        on_ready: Callable[[T], object] = _nothing,
        close_version: Callable[[T], Awaitable[None]] = _forget,
        n_in_flight: Callable[[str, str], int] = _nothing,
    ) -> None:
        """Hold nothing yet; ``start`` opens what is to be served at first.

        Args:
            context: The actor's.
            models: Those that it serves.
            open_version: Opens a bundle for a model: called in a thread, with a function to tell
                how far it is, from any thread. Raises what says why the bundle cannot be served.
            on_ready: Called in the event loop with what was opened, before it is in ``ready``.
            close_version: Gives back what is not in ``ready`` any more. Shielded where it must be.
            n_in_flight: How many requests are with a version of a model; while any are, it stays.
        """
        self.ready: dict[tuple[str, str], T] = {}
        self.current: dict[str, str] = {}
        self._context = context
        self._models = models
        self._open_version = open_version
        self._on_ready = on_ready
        self._close_version = close_version
        self._n_in_flight = n_in_flight
        self._entries: dict[tuple[str, str], _Entry[T]] = {}
        self._leases = {model: Lease() for model in models}
        self._changing = trio.Lock()

    def of(self, model: str) -> T:
        """Return the version of a model that is in use.

        Raises:
            KeyError: The actor does not serve the model.
        """
        return self.ready[model, self.current[model]]

    def bundle(self, model: str) -> Path:
        """Return the folder of the bundle that is in use."""
        return self._entries[model, self.current[model]].bundle

    async def start(self) -> None:
        """Open all models, as they were deployed last or as the topology says.

        Raises:
            BundleError, SpecError, StartError, OSError: A version to be used cannot be served.
        """
        parts = [part for model in self._models for part in self._due(model)]
        token = trio.lowlevel.current_trio_token()
        for done, (model, version, path) in enumerate(parts):

            def progress(share: float, done: int = done) -> None:
                token.run_sync_soon(self._context.report_ready, (done + share) / len(parts))

            entry = _Entry[T](path)
            is_beside = model in self.current
            try:
                await trio.to_thread.run_sync(self._open, model, version, entry, progress)
            except _REFUSALS as error:
                if not is_beside:
                    raise
                # Whoever uses it nevertheless has it loaded again.
                log.error("%s: %s %s: %s", self._context.name, model, path, describe(error))
                continue
            self._enter(model, entry)
            self.current.setdefault(model, entry.version)

    def serve(self, envelope: Envelope, nursery: trio.Nursery) -> None:
        """Obey and answer a deployment's question.

        Args:
            envelope: Holds one of ``QUESTIONS``; one that was told goes unheard.
            nursery: Where loads run.
        """
        message, reply = envelope.message, envelope.reply
        if reply is None or not isinstance(message, QUESTIONS):
            return
        lease = self._leases.get(message.model)
        if lease is None:
            problem = f"{self._context.name} does not serve model {message.model!r}"
            reply(ErrorReply(request_id=0, code="invalid", message=problem))
            return
        if message.deployment == 0:
            is_idle = not lease.holder(trio.current_time())
            is_obeyed = isinstance(message, LoadVersion) or (
                isinstance(message, UseVersion) and is_idle
            )
        else:
            is_obeyed = lease.claim(message.deployment, trio.current_time())
        if is_obeyed and isinstance(message, UseVersion | DropVersion):
            nursery.start_soon(self._change, message, reply)
            return
        if is_obeyed and isinstance(message, LoadVersion):
            self._begin_load(message, nursery)
        elif is_obeyed and isinstance(message, EndDeployment):
            lease.end()
        reply(self._state(message.model, message.version))

    def _due(self, model: str) -> list[tuple[str, str, Path]]:
        """Return model, version and bundle of all to open at the start, the one to use first."""
        spec = self._context.topology.models[model]
        deployed = self._context.deployed(model)
        if deployed is None:
            return [(model, "", spec.bundle)]
        path = deployed.bundles[deployed.current]
        if path != spec.bundle:
            text = "%s: model %s: serves %s, which was deployed, and not %s"
            log.warning(text, self._context.name, model, path, spec.bundle)
        # A bundle that was built anew in its place since is served as it is, as after any start.
        others = [each for each in deployed.bundles.items() if each[1] != path]
        return [(model, "", path), *((model, *each) for each in others)]

    def _open(self, model: str, version: str, entry: _Entry[T], progress: Progress) -> None:
        """Open a bundle, in a thread; any version if ``version`` is empty."""
        bundle = load_bundle(entry.bundle)
        found = bundle.manifest.version
        if version not in ("", found):
            raise BundleError(f"{entry.bundle}: is version {found[:12]}, not {version[:12]}")
        entry.held = self._open_version(model, bundle, progress)
        entry.version, entry.built_from = found, bundle.manifest.model

    def _enter(self, model: str, entry: _Entry[T]) -> None:
        assert entry.held is not None
        self._on_ready(entry.held)
        entry.is_ready = True
        self._entries[model, entry.version] = entry
        self.ready[model, entry.version] = entry.held

    def _begin_load(self, message: LoadVersion, nursery: trio.Nursery) -> None:
        """Load a version, unless it is here, on its way, or has failed for this deployment."""
        key = message.model, message.version
        entry = self._entries.get(key)
        if entry is not None:
            entry.is_wanted = True
            if not entry.problem or message.deployment == entry.deployment != 0:
                return
        entry = self._entries[key] = _Entry[T](Path(message.bundle), message.deployment)
        nursery.start_soon(self._load, message.model, message.version, entry)

    async def _load(self, model: str, version: str, entry: _Entry[T]) -> None:
        def progress(share: float) -> None:
            entry.share = share

        try:
            await trio.to_thread.run_sync(self._open, model, version, entry, progress)
            async with self._changing:
                if entry.is_wanted:
                    await self._keep(model, self.current[model], {version: entry.bundle})
                    self._enter(model, entry)
        except DeviceLost:
            raise
        except Exception as error:  # the seam at which what is wrong with a bundle arrives
            entry.problem = describe(error)
            known = isinstance(error, _REFUSALS)
            log.error(
                "%s: %s %s cannot be served: %s",
                self._context.name,
                model,
                entry.bundle,
                entry.problem,
                exc_info=None if known else error,
            )
        finally:
            if not entry.is_ready:
                await self._give_back(entry)
                if not entry.is_wanted:
                    self._entries.pop((model, version), None)

    async def _change(self, message: UseVersion | DropVersion, reply: Reply) -> None:
        try:
            async with self._changing:
                if isinstance(message, UseVersion):
                    await self._use(message.model, message.version)
                else:
                    await self._drop(message.model, message.version)
        except OSError as error:  # it cannot be written down
            reply(ErrorReply(request_id=0, code="internal", message=describe(error)))
            return
        reply(self._state(message.model, message.version))

    async def _use(self, model: str, version: str) -> None:
        if (model, version) in self.ready and self.current[model] != version:
            await self._keep(model, version, {})
            self.current[model] = version
            log.info("%s: model %s: serves version %s", self._context.name, model, version[:12])

    async def _drop(self, model: str, version: str) -> None:
        entry = self._entries.get((model, version))
        if entry is None or version == self.current[model] or self._n_in_flight(model, version):
            return
        if entry.is_ready:
            del self._entries[model, version], self.ready[model, version]
            await self._give_back(entry)
            await self._keep(model, self.current[model], {})
        elif entry.problem:
            del self._entries[model, version]
        else:
            entry.is_wanted = False  # its thread cannot be stopped

    async def _give_back(self, entry: _Entry[T]) -> None:
        held, entry.held = entry.held, None
        if held is not None:
            await self._close_version(held)
            del held
            await trio.to_thread.run_sync(give_back)

    async def _keep(self, model: str, current: str, more: Mapping[str, Path]) -> None:
        """Write down what is held of a model, and ``more``."""
        bundles = {
            version: entry.bundle
            for (name, version), entry in self._entries.items()
            if name == model and entry.is_ready
        }
        deployed = Deployed(
            instead_of=self._context.topology.models[model].bundle,
            current=current,
            bundles={**bundles, **more},
        )
        await self._context.keep_deployed(model, deployed)

    def _state(self, model: str, version: str) -> VersionState:
        entry = self._entries.get((model, version))
        current = self.current[model]
        return VersionState(
            deployment=self._leases[model].holder(trio.current_time()),
            model=model,
            version=version,
            state="absent" if entry is None else entry.state,
            percent=0 if entry is None else int(100 * entry.share),
            n_in_flight=self._n_in_flight(model, version),
            message="" if entry is None else entry.problem,
            current=current,
            built_from=self._entries[model, current].built_from,
            held=tuple(
                version
                for (name, version), entry in self._entries.items()
                if name == model and not entry.problem
            ),
        )
