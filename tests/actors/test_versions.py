"""What one actor does for deployments, and what a gateway does for actors that lack a version."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from actors.restore import Restorer
from actors.versions import Lease, Versions
from kernels.bundle.load import Bundle
from kernels.errors import BundleError
from runtime.actor import Envelope, Ref
from runtime.deployed import Deployed, Deployments
from runtime.topology import Topology, all_in_one
from tests.swaps import build, version
from transport.errors import Unavailable
from transport.messages import ErrorReply, Message
from transport.versions import (
    LEASE_S,
    DropVersion,
    EndDeployment,
    LoadVersion,
    UseVersion,
    VersionRequest,
    VersionState,
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(tmp_path_factory.mktemp("versions"))


def test_a_lease_is_the_first_ones_until_it_is_silent_or_ends_it() -> None:
    lease = Lease()
    assert lease.holder(0.0) == 0
    assert lease.claim(1, 0.0)
    assert not lease.claim(2, LEASE_S - 0.1)
    assert lease.claim(1, LEASE_S - 0.1)
    assert not lease.claim(2, LEASE_S + 0.1)
    assert lease.holder(LEASE_S + 0.1) == 1
    assert lease.claim(2, 2 * LEASE_S)
    lease.end()
    assert lease.claim(1, 2 * LEASE_S)


@attrs.define(eq=False)
class FakeContext:
    """An actor's context; what it keeps is in memory, and may fail to be kept."""

    topology: Topology
    deployments: Deployments
    name: str = "shard-0"
    full: bool = False
    refs: dict[str, Ref] = attrs.field(factory=dict)
    stopping: trio.Event = attrs.field(factory=trio.Event)
    options: Mapping[str, Any] = attrs.field(factory=dict)

    def ref(self, actor: str) -> Ref:
        return self.refs[actor]

    def deployed(self, model: str) -> Deployed | None:
        return self.deployments.get(self.name, model)

    async def keep_deployed(self, model: str, deployed: Deployed) -> None:
        await trio.lowlevel.checkpoint()
        if self.full:
            raise OSError("the disk is full")
        self.deployments.put(self.name, model, deployed)

    def report_ready(self, progress: float) -> None:
        pass


def context_of(bundle: Path, deployments: Deployments | None = None) -> FakeContext:
    topology = all_in_one(bundle, model="m")
    return FakeContext(topology, deployments or Deployments(topology))


class Held:
    """What was opened."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.is_open = True

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self.is_open = False


class Actor:
    """Versions, and a nursery for them."""

    def __init__(self, context: FakeContext, nursery: trio.Nursery) -> None:
        self.context = context
        self.opened: list[Held] = []
        self.n_in_flight = 0
        self.breaks: Callable[[Bundle], object] = lambda bundle: None
        self.nursery = nursery
        self.versions: Versions[Held] = Versions(
            context,
            ["m"],
            self._open,
            close_version=Held.close,
            n_in_flight=lambda model, version: self.n_in_flight,
        )

    def _open(self, model: str, bundle: Bundle, progress: Callable[[float], None]) -> Held:
        self.breaks(bundle)
        progress(0.5)
        self.opened.append(Held(bundle))
        return self.opened[-1]

    async def ask(self, question: Message) -> VersionState | ErrorReply:
        answers: list[Message] = []
        answered = trio.Event()

        def reply(message: Message) -> None:
            answers.append(message)
            answered.set()

        self.versions.serve(Envelope(question, 0.0, reply), self.nursery)
        await answered.wait()
        [answer] = answers
        assert isinstance(answer, VersionState | ErrorReply)
        return answer

    async def settled(self, question: LoadVersion) -> VersionState:
        while True:
            state = await self.ask(question)
            assert isinstance(state, VersionState)
            if state.state != "loading":
                return state
            await trio.sleep(0.001)


def load(bundle: Path, deployment: int = 1, of: str | None = None) -> LoadVersion:
    return LoadVersion(
        deployment=deployment, model="m", version=of or version(bundle), bundle=str(bundle)
    )


def use(bundle: Path, deployment: int = 1) -> UseVersion:
    return UseVersion(deployment=deployment, model="m", version=version(bundle))


def drop(bundle: Path, deployment: int = 1) -> DropVersion:
    return DropVersion(deployment=deployment, model="m", version=version(bundle))


def look(bundle: Path) -> VersionRequest:
    return VersionRequest(deployment=0, model="m", version=version(bundle))


async def test_a_version_is_loaded_used_and_given_back(bundles: list[Path]) -> None:
    async with trio.open_nursery() as nursery:
        old, new = bundles
        actor = Actor(context_of(old), nursery)
        await actor.versions.start()
        state = await actor.settled(load(new))
        assert (state.state, state.current, state.percent) == ("ready", version(old), 50)
        assert set(state.held) == {version(old), version(new)}
        assert state.built_from == "tiny"
        kept = actor.context.deployed("m")
        assert kept == Deployed(
            instead_of=old, current=version(old), bundles={version(old): old, version(new): new}
        )
        dropped = await actor.ask(drop(old))
        assert isinstance(dropped, VersionState)
        assert dropped.state == "ready"  # it is in use
        await actor.ask(use(new))
        assert actor.versions.of("m") is actor.opened[1]
        actor.n_in_flight = 2
        dropped = await actor.ask(drop(old))
        assert isinstance(dropped, VersionState)
        assert (dropped.state, dropped.n_in_flight) == ("ready", 2)
        actor.n_in_flight = 0
        dropped = await actor.ask(drop(old))
        assert isinstance(dropped, VersionState)
        assert (dropped.state, dropped.held) == ("absent", (version(new),))
        assert [each.is_open for each in actor.opened] == [False, True]
        assert actor.versions.bundle("m") == new
        nursery.cancel_scope.cancel()


async def test_what_was_deployed_is_opened_at_the_next_start(
    bundles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    async with trio.open_nursery() as nursery:
        old, new = bundles
        actor = Actor(context_of(old), nursery)
        await actor.versions.start()
        await actor.settled(load(new))
        await actor.ask(use(new))
        again = Actor(actor.context, nursery)
        await again.versions.start()
        assert again.versions.current == {"m": version(new)}
        assert set(again.versions.ready) == {("m", version(old)), ("m", version(new))}
        assert f"serves {new}, which was deployed, and not {old}" in caplog.text
        # The one beside may be bad by now; the one in use may not.
        for broken, is_fatal in ((old, False), (new, True)):

            def breaks(bundle: Bundle, broken: Path = broken) -> None:
                if bundle.path == broken:
                    raise BundleError(f"{broken} is broken")

            third = Actor(actor.context, nursery)
            third.breaks = breaks
            if is_fatal:
                with pytest.raises(BundleError, match="is broken"):
                    await third.versions.start()
            else:
                await third.versions.start()
                assert set(third.versions.ready) == {("m", version(new))}
        nursery.cancel_scope.cancel()


async def test_a_bundle_that_was_built_anew_in_its_place_is_opened_once_as_it_is(
    bundles: list[Path], copied: Path
) -> None:
    context = context_of(bundles[0])
    kept = Deployed(
        instead_of=bundles[0],
        current="before",
        bundles={"before": copied, version(copied): copied, version(bundles[0]): bundles[0]},
    )
    await context.keep_deployed("m", kept)
    async with trio.open_nursery() as nursery:
        actor = Actor(context, nursery)
        await actor.versions.start()
    assert [each.bundle.path for each in actor.opened] == [copied, bundles[0]]
    assert actor.versions.current == {"m": version(copied)}


@pytest.mark.parametrize("kind", [BundleError, ZeroDivisionError, MemoryError])
async def test_whatever_a_bundle_raises_the_old_one_stays(
    kind: type[Exception], bundles: list[Path]
) -> None:
    async with trio.open_nursery() as nursery:
        old, new = bundles
        actor = Actor(context_of(old), nursery)
        await actor.versions.start()

        def breaks(bundle: Bundle) -> None:
            raise kind("bad")

        actor.breaks = breaks
        for _ in range(2):  # the same deployment does not make it load again
            state = await actor.settled(load(new))
            assert (state.state, state.message) == ("failed", f"{kind.__name__}: bad")
        assert state.held == (version(old),)
        actor.breaks = lambda bundle: None
        assert (await actor.ask(load(new))) == state
        await actor.ask(EndDeployment(deployment=1, model="m", version=""))
        assert (await actor.settled(load(new, 2))).state == "ready"
        nursery.cancel_scope.cancel()


async def test_another_version_at_that_place_is_not_loaded(bundles: list[Path]) -> None:
    async with trio.open_nursery() as nursery:
        actor = Actor(context_of(bundles[0]), nursery)
        await actor.versions.start()
        state = await actor.settled(load(bundles[1], of="f" * 64))
        assert state.state == "failed"
        assert f"is version {version(bundles[1])[:12]}, not ffffffffffff" in state.message
        assert len(actor.opened) == 1
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_written_down_is_not_done(bundles: list[Path]) -> None:
    async with trio.open_nursery() as nursery:
        old, new = bundles
        actor = Actor(context_of(old), nursery)
        await actor.versions.start()
        actor.context.full = True
        assert (await actor.settled(load(new))).message == "OSError: the disk is full"
        assert [each.is_open for each in actor.opened] == [True, False]
        actor.context.full = False
        await actor.ask(drop(new))
        await actor.settled(load(new))
        actor.context.full = True
        answer = await actor.ask(use(new))
        assert isinstance(answer, ErrorReply)
        assert (answer.code, answer.message) == ("internal", "OSError: the disk is full")
        assert actor.versions.current == {"m": version(old)}
        nursery.cancel_scope.cancel()


async def test_one_that_is_dropped_while_it_loads_is_given_back_when_it_has(
    bundles: list[Path],
) -> None:
    async with trio.open_nursery() as nursery:
        actor = Actor(context_of(bundles[0]), nursery)
        await actor.versions.start()
        goes_on = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def breaks(bundle: Bundle) -> None:
            trio.from_thread.run(goes_on.wait, trio_token=token)

        actor.breaks = breaks
        await actor.ask(load(bundles[1]))
        state = await actor.ask(drop(bundles[1]))
        assert isinstance(state, VersionState)
        assert state.state == "loading"
        goes_on.set()
        while version(bundles[1]) in _held(await actor.ask(look(bundles[1]))):  # noqa: ASYNC110
            await trio.sleep(0.001)
        assert [each.is_open for each in actor.opened] == [True, False]
        assert actor.context.deployed("m") is None
        nursery.cancel_scope.cancel()


def _held(state: VersionState | ErrorReply) -> tuple[str, ...]:
    assert isinstance(state, VersionState)
    return state.held


async def test_one_deployment_is_obeyed_at_a_time_and_only_of_models_that_are_here(
    bundles: list[Path], autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        old, new = bundles
        actor = Actor(context_of(old), nursery)
        await actor.versions.start()
        await actor.ask(VersionRequest(deployment=1, model="m", version=version(new)))
        state = await actor.ask(load(new, 2))
        assert isinstance(state, VersionState)
        assert (state.deployment, state.state) == (1, "absent")
        # A gateway that uses it may have it loaded, but not change what a deployment is changing.
        state = await actor.ask(load(new, 0))
        assert isinstance(state, VersionState)
        assert state.state == "loading"
        while (await actor.ask(look(new))).state != "ready":  # type: ignore[union-attr]
            await trio.lowlevel.checkpoint()
        await actor.ask(use(new, 0))
        assert actor.versions.current == {"m": version(old)}
        autojump_clock.jump(LEASE_S)
        await actor.ask(drop(new, 0))
        await actor.ask(use(new, 0))
        assert actor.versions.current == {"m": version(new)}
        answer = await actor.ask(attrs.evolve(look(new), model="n"))
        assert isinstance(answer, ErrorReply)
        assert answer.message == "shard-0 does not serve model 'n'"
        actor.versions.serve(Envelope(drop(old), 0.0), nursery)  # told: nobody hears it
        assert ("m", version(old)) in actor.versions.ready
        nursery.cancel_scope.cancel()


@attrs.define
class FakeRef:
    """An actor that is asked by a gateway."""

    name: str
    actor: Actor | None

    def tell(self, message: Message) -> None:
        raise AssertionError

    async def ask(self, message: Message, *, budget: float) -> Message:
        if self.actor is None:
            await trio.lowlevel.checkpoint()
            raise Unavailable(f"{self.name} is away")
        return await self.actor.ask(message)


@pytest.fixture
def copied(bundles: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles[1], tmp_path / "bundle"))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):  # of the mock's time; loads take their own in threads
        if condition():
            return
        await trio.sleep(0.1)
    raise AssertionError("waited in vain")


async def test_a_gateway_has_what_it_uses_loaded_where_it_is_missing(
    bundles: list[Path],
    copied: Path,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with trio.open_nursery() as nursery:
        gateway = Actor(context_of(copied), nursery)
        await gateway.versions.start()
        shard = Actor(context_of(bundles[0]), nursery)
        await shard.versions.start()
        gateway.context.refs = {
            "shard-0": FakeRef("shard-0", shard),
            "executor-0": FakeRef("executor-0", None),
        }
        restorer = Restorer(gateway.context, gateway.versions)
        nursery.start_soon(restorer.run)
        shard.breaks = lambda bundle: (copied / "gone").read_bytes()
        await trio.sleep(100)
        assert len(shard.opened) == 1  # nobody has complained
        restorer.suspect()
        await until(lambda: "cannot be served" in caplog.text)
        assert caplog.text.count("shard-0 has no version") == 1
        shard.breaks = lambda bundle: None
        await until(lambda: shard.versions.current == {"m": version(copied)})
        assert caplog.text.count("shard-0 has no version") == 2
        assert shard.versions.bundle("m") == copied
        nursery.cancel_scope.cancel()
