"""The coordinator of deployments, over actors that fail as they are told; time is a mock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from kernels.bundle.load import load_bundle
from runtime.deployment import Deployment, Outcome
from runtime.errors import DeploymentFailed
from runtime.topology import GATEWAY, ActorSpec, ModelSpec, NodeSpec, Topology
from tests.swaps import build
from transport.errors import InternalError, Unavailable
from transport.messages import Message, Pong
from transport.versions import (
    DropVersion,
    EndDeployment,
    LoadVersion,
    UseVersion,
    VersionRequest,
    VersionState,
)

OLD = "old"
NAMES = ("front-0", "front-1", "shard", "executor")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("versions"))[1]


@pytest.fixture(scope="module")
def new(bundle: Path) -> str:
    return load_bundle(bundle).manifest.version


@attrs.define
class FakeActor:
    """Obeys every deployment at once, unless a test says otherwise.

    Attributes:
        log: What all were asked, by name, in order.
        loads: How often it says that it still loads.
        in_flight: How often it says that a request is still with a version to be dropped.
        fails: Why it cannot load.
        obeys: The deployment that it obeys, if it is another one.
        away: Until when nobody is there.
        breaks: Called with each question; may raise, or change what is here.
    """

    name: str
    log: list[tuple[str, Message]]
    current: str = OLD
    held: list[str] = attrs.field(factory=lambda: [OLD])
    loads: int = 0
    in_flight: int = 0
    fails: str = ""
    obeys: int = 0
    away: float = 0.0
    built_from: str = "tiny"
    is_loading: bool = False
    breaks: Callable[[Message], object] = lambda message: None

    def tell(self, message: Message) -> None:
        raise AssertionError

    async def ask(self, message: Message, *, budget: float) -> Message:
        await trio.lowlevel.checkpoint()
        self.breaks(message)
        if trio.current_time() < self.away:
            raise Unavailable(f"{self.name} is away")
        self.log.append((self.name, message))
        assert isinstance(
            message, LoadVersion | UseVersion | DropVersion | VersionRequest | EndDeployment
        )
        state, n_in_flight = "ready" if message.version in self.held else "absent", 0
        if self.obeys in (0, message.deployment):
            self.is_loading |= isinstance(message, LoadVersion) and state == "absent"
            if isinstance(message, LoadVersion | VersionRequest) and self.is_loading:
                state = "failed" if self.fails else "loading"
                self.loads -= 1
                if self.loads < 0 and not self.fails:
                    self.held.append(message.version)
                    self.is_loading, state = False, "ready"
            elif isinstance(message, UseVersion) and message.version in self.held:
                self.current = message.version
            elif isinstance(message, DropVersion) and message.version in self.held:
                n_in_flight, self.in_flight = self.in_flight, max(self.in_flight - 1, 0)
                if message.version != self.current and not n_in_flight:
                    self.held.remove(message.version)
        return VersionState(
            deployment=self.obeys or message.deployment,
            model="m",
            version=message.version,
            state=state,
            n_in_flight=n_in_flight,
            message=self.fails,
            current=self.current,
            built_from=self.built_from,
            held=tuple(self.held),
        )


class Cluster:
    """Two gateways, a shard and an executor, on one machine."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Message]] = []
        self.lines: list[str] = []
        self.actors = {name: FakeActor(name, self.log) for name in NAMES}
        specs = [
            ActorSpec(name=name, class_name=GATEWAY if name.startswith("front") else "x.Y")
            for name in NAMES
        ]
        model = ModelSpec(name="m", bundle=Path("/b"), shards=("shard",), executors=("executor",))
        self.topology = Topology(
            name="t",
            nodes=tuple(NodeSpec(name=spec.name, actors=(spec,)) for spec in specs),
            models={"m": model},
        )

    async def deploy(self, bundle: Path, **options: Any) -> Outcome:  # noqa: ANN401
        deployment = Deployment(
            self.topology,
            self.actors.__getitem__,
            "m",
            bundle,
            say=self.lines.append,
            **options,
        )
        return await deployment.run()

    def asked(self, kind: type) -> list[str]:
        return [name for name, message in self.log if isinstance(message, kind)]

    def hold(self) -> set[tuple[str, tuple[str, ...]]]:
        return {(each.current, tuple(each.held)) for each in self.actors.values()}

    def ended(self) -> bool:
        return set(self.asked(EndDeployment)) == set(NAMES)


async def test_all_load_before_one_uses_and_use_before_one_drops(
    bundle: Path, new: str, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    cluster.actors["shard"].loads = 50
    cluster.actors["front-1"].in_flight = 7
    outcome = await cluster.deploy(bundle)
    assert outcome == Outcome(version=new, previous=(OLD,))
    assert cluster.hold() == {(new, (new,))}
    kinds = [type(message) for _, message in cluster.log if type(message) is not VersionRequest]
    assert kinds.index(UseVersion) > max(i for i, kind in enumerate(kinds) if kind is LoadVersion)
    assert kinds.index(DropVersion) > max(i for i, kind in enumerate(kinds) if kind is UseVersion)
    drops = cluster.asked(DropVersion)
    assert min(drops.index("shard"), drops.index("executor")) > max(
        i for i, name in enumerate(drops) if name == "front-1"
    )
    used = cluster.asked(UseVersion)
    assert set(used[:2]) == {"front-0", "front-1"}
    assert cluster.ended()


async def test_what_is_served_already_is_left_alone(
    bundle: Path, new: str, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    for actor in cluster.actors.values():
        actor.current, actor.held = new, [new]
    assert await cluster.deploy(bundle) == Outcome(version=new, previous=())
    assert not cluster.asked(LoadVersion)
    assert cluster.ended()


async def test_what_one_cannot_load_all_give_back(
    bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    cluster.actors["executor"].fails = "it is bad"
    with pytest.raises(DeploymentFailed, match=r"^executor: it is bad; nothing has changed$"):
        await cluster.deploy(bundle)
    assert cluster.hold() == {(OLD, (OLD,))}
    assert not cluster.asked(UseVersion)
    assert cluster.ended()


async def test_an_actor_that_is_away_for_a_while_is_waited_for(
    bundle: Path, new: str, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()

    def die(shard: FakeActor, message: Message) -> None:
        if isinstance(message, LoadVersion) and not shard.away:
            shard.away = trio.current_time() + 20

    shard = cluster.actors["shard"]
    shard.breaks = lambda message: die(shard, message)
    assert (await cluster.deploy(bundle)).version == new
    assert cluster.hold() == {(new, (new,))}


async def test_a_bundle_that_ends_its_loader_is_given_up(
    bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    executor = cluster.actors["executor"]
    executor.loads = 10

    def crash(message: Message) -> None:
        if executor.is_loading:
            executor.is_loading, executor.away = False, trio.current_time() + 3

    executor.breaks = crash
    with pytest.raises(DeploymentFailed, match=r"executor: has ended 2 times while it loaded /.*;"):
        await cluster.deploy(bundle)
    assert cluster.asked(LoadVersion).count("executor") == 2
    assert cluster.hold() == {(OLD, (OLD,))}


async def test_what_is_left_out_is_not_asked(
    bundle: Path, new: str, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    cluster.actors["shard"].away = float("inf")
    assert (await cluster.deploy(bundle, without=["shard"])).version == new
    assert cluster.actors["executor"].held == [new]
    with pytest.raises(DeploymentFailed, match="without: no shard or executor 'front-0'; there"):
        await cluster.deploy(bundle, without=["front-0"])


async def test_one_that_lost_what_it_had_loaded_loads_it_again(
    bundle: Path, new: str, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    shard = cluster.actors["shard"]

    def forget(message: Message) -> None:
        if isinstance(message, UseVersion) and cluster.asked(LoadVersion).count("shard") == 1:
            shard.held = [OLD]

    shard.breaks = forget
    assert (await cluster.deploy(bundle)).version == new
    assert cluster.hold() == {(new, (new,))}


@pytest.mark.parametrize(
    ("name", "kind", "serves"),
    [
        ("front-0", VersionRequest, "nothing has changed"),
        ("shard", LoadVersion, "nothing has changed"),
        ("front-1", UseVersion, "the new version is in use, perhaps not everywhere"),
        ("shard", DropVersion, "the new version is in use, perhaps not everywhere"),
    ],
)
async def test_one_that_stays_away_ends_it_and_another_deployment_finishes(
    name: str,
    kind: type,
    serves: str,
    bundle: Path,
    new: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster()
    actor = cluster.actors[name]

    def vanish(message: Message) -> None:
        if isinstance(message, kind):
            actor.away = float("inf")

    actor.breaks = vanish
    with pytest.raises(DeploymentFailed, match=rf"{name} does not answer \(.* away\); {serves}"):
        await cluster.deploy(bundle)
    others = [each for each in cluster.actors.values() if each is not actor]
    if serves.startswith("nothing"):
        assert {(each.current, tuple(each.held)) for each in others} == {(OLD, (OLD,))}
    actor.breaks, actor.away = lambda message: None, 0.0
    assert (await cluster.deploy(bundle)).version == new
    assert cluster.hold() == {(new, (new,))}


async def test_another_deployment_under_way_is_left_alone(
    bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    cluster.actors["front-0"].obeys = 17
    with pytest.raises(DeploymentFailed, match=r"^front-0: another deployment of m is under way"):
        await cluster.deploy(bundle)
    assert cluster.hold() == {(OLD, (OLD,))}
    assert set(cluster.asked(VersionRequest)) == {"front-0"}


async def test_leftovers_are_given_back_first_and_a_stray_current_one_at_the_end(
    bundle: Path, new: str, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    cluster.actors["executor"].held = [OLD, "left"]
    cluster.actors["shard"].held, cluster.actors["shard"].current = ["astray", OLD], "astray"
    await cluster.deploy(bundle)
    dropped = [m.version for _, m in cluster.log if isinstance(m, DropVersion)]
    assert dropped[0] == "left"
    assert cluster.hold() == {(new, (new,))}


async def test_a_bundle_of_another_origin_is_refused_unless_meant(
    bundle: Path, new: str, autojump_clock: trio.testing.MockClock
) -> None:
    cluster = Cluster()
    for actor in cluster.actors.values():
        actor.built_from = "large"
    with pytest.raises(DeploymentFailed, match=r"built from 'tiny', and what .* from 'large'"):
        await cluster.deploy(bundle)
    assert cluster.hold() == {(OLD, (OLD,))}
    assert (await cluster.deploy(bundle, any_origin=True)).version == new


async def test_strange_answers_end_it(bundle: Path, autojump_clock: trio.testing.MockClock) -> None:
    def refuse(message: Message) -> None:
        raise InternalError("the disk is full")

    cluster = Cluster()
    cluster.actors["shard"].breaks = refuse
    with pytest.raises(DeploymentFailed, match="shard: the disk is full; nothing has changed"):
        await cluster.deploy(bundle)

    class Stranger(FakeActor):
        async def ask(self, message: Message, *, budget: float) -> Message:
            await trio.lowlevel.checkpoint()
            return Pong(request_id=1, status="ready")

    cluster = Cluster()
    cluster.actors["front-0"] = Stranger("front-0", cluster.log)
    with pytest.raises(DeploymentFailed, match="front-0 answers Pong"):
        await cluster.deploy(bundle)


async def test_no_actor_is_forgotten_while_another_loads(
    bundle: Path, autojump_clock: trio.testing.MockClock
) -> None:
    heard: list[float] = []
    cluster = Cluster()
    cluster.actors["shard"].loads = 100
    cluster.actors["front-0"].breaks = lambda message: heard.append(trio.current_time())
    await cluster.deploy(bundle)
    assert heard[-1] - heard[0] > 15
    assert max(gaps(heard)) < 2


def gaps(times: Iterable[float]) -> list[float]:
    return [later - sooner for sooner, later in itertools.pairwise(times)]
