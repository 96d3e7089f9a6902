"""The cluster as a frozen value: its nodes, the actors in each, the models that they serve.

``runtime.cluster_file`` reads one from TOML; ``all_in_one`` and ``spread`` make the two usual ones.
Nodes and actors stop in the order given here, so the gateway comes first: it refuses new work while
the others still finish what it took.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import attrs

from runtime.errors import TopologyError
from runtime.mailbox import CAPACITY

# Names end up in socket paths and log prefixes.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_BIND: Final = re.compile(r"(tcp://.+:\d+|ipc://.+)")
# The kernel's limit for the path of a Unix socket is 107 bytes (unix(7)), 103 on macOS.
_IPC_PATH_MOST: Final = 103

FAIL: Final = "fail"
DEFAULT: Final = "default"


@attrs.frozen(kw_only=True)
class ActorSpec:
    """An actor: the dotted name of its class, its mailbox's capacity, options of its own."""

    name: str
    class_name: str
    mailbox: int = CAPACITY
    options: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class NodeSpec:
    """A process.

    Attributes:
        bind: Where other nodes reach it: ZeroMQ's ``tcp://`` or ``ipc://``.
        mps: Share of a card's multiprocessors that the node's executors may use, in percent, side
            by side with other nodes of this machine that have a share; None for a card of its own.
    """

    name: str
    actors: tuple[ActorSpec, ...]
    bind: str | None = None
    mps: int | None = None


@attrs.frozen(kw_only=True)
class ModelSpec:
    """A model: its bundle's folder and the names of the actors that serve it.

    Attributes:
        shards: Of each group of the placement, as many actors as there are replicas, on distinct
            nodes: ``shards[r * n_groups + g]`` is replica ``r`` of group ``g``.
        replicas: Of each group.
        missing: What happens to a request when all replicas of a group are gone: ``fail``, or
            ``default`` for default rows and an answer that is marked as degraded.
        placement: File that says where the tables lie; None for that of the bundle's folder, and
            without one there, for whole tables divided over the groups.
    """

    name: str
    bundle: Path
    shards: tuple[str, ...]
    executors: tuple[str, ...]
    replicas: int = 1
    missing: str = FAIL
    placement: Path | None = None

    @property
    def n_groups(self) -> int:
        """How many groups the shards serve."""
        return len(self.shards) // self.replicas

    def replicas_of(self, group: int) -> tuple[str, ...]:
        """Return the shards that serve a group, by replica."""
        return self.shards[group :: self.n_groups]

    def group_of(self, shard: str) -> int:
        """Return the group that a shard serves.

        Raises:
            ValueError: It is no shard of this model.
        """
        return self.shards.index(shard) % self.n_groups


@attrs.frozen(kw_only=True)
class Topology:
    """A cluster.

    Attributes:
        run_folder: Where the sockets and the lock of this machine's part lie.
        drain_s: Time each node has to finish what it took when it is stopped.

    Raises:
        TopologyError: Names are malformed or double, or refer to nothing.
    """

    name: str
    nodes: tuple[NodeSpec, ...]
    models: Mapping[str, ModelSpec] = attrs.field(factory=dict)
    run_folder: Path = attrs.field(factory=lambda: default_run_folder("in-process", Path.cwd()))
    drain_s: float = 10.0

    def __attrs_post_init__(self) -> None:
        _check_name("cluster", "name", self.name)
        if not self.nodes:
            raise TopologyError("nodes", "", "a cluster has at least one node")
        if not 0 <= self.drain_s < float("inf"):
            raise TopologyError("cluster", "drain_s", f"want seconds, got {self.drain_s}")
        homes: dict[str, str] = {}
        for node in self.nodes:
            self._check_node(node)
            for actor in node.actors:
                if actor.name in homes:
                    raise TopologyError(
                        f"nodes.{node.name}.actors.{actor.name}",
                        "",
                        f"node {homes[actor.name]!r} has an actor of that name already",
                    )
                homes[actor.name] = node.name
        for model in self.models.values():
            for key, names in (("shards", model.shards), ("executors", model.executors)):
                _check_actors(f"models.{model.name}", key, names, homes)
            _check_replicas(model, homes)

    def node(self, name: str) -> NodeSpec:
        """Return a node by name.

        Raises:
            KeyError: There is none.
        """
        return self._nodes[name]

    def node_of(self, actor: str) -> NodeSpec:
        """Return the node that an actor lives in.

        Raises:
            KeyError: There is no actor of that name.
        """
        return self._homes[actor]

    def address(self, node: str) -> str:
        """Return the ZeroMQ address at which a node is reached by the others."""
        return self._nodes[node].bind or f"ipc://{self.run_folder / node}.ipc"

    @cached_property
    def gateways(self) -> tuple[str, ...]:
        """The actors that clients talk to: those of the gateway's class, or of its name."""
        return tuple(
            actor.name
            for node in self.nodes
            for actor in node.actors
            if actor.class_name == GATEWAY or actor.name == "gateway"
        )

    def updaters(self, model: str) -> tuple[str, ...]:
        """The actors that take a model's updates: all models', unless their options name some."""
        return tuple(
            actor.name
            for node in self.nodes
            for actor in node.actors
            if actor.class_name == UPDATER and _concerns(actor.options.get("models"), model)
        )

    @cached_property
    def _nodes(self) -> dict[str, NodeSpec]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _homes(self) -> dict[str, NodeSpec]:
        return {actor.name: node for node in self.nodes for actor in node.actors}

    def _check_node(self, node: NodeSpec) -> None:
        table = f"nodes.{node.name}"
        _check_name(table, "", node.name)
        if [each.name for each in self.nodes].count(node.name) > 1:
            raise TopologyError(table, "", "there are two nodes of that name")
        if not node.actors:
            raise TopologyError(table, "actors", "a node has at least one actor")
        if node.bind is not None and not _BIND.fullmatch(node.bind):
            problem = f"want tcp://HOST:PORT or ipc://PATH, got {node.bind!r}"
            raise TopologyError(table, "bind", problem)
        if node.mps is not None and not 1 <= node.mps <= 100:
            raise TopologyError(table, "mps", f"want a percentage, 1 to 100, got {node.mps}")
        address = self.address(node.name)
        path_bytes = len(address.removeprefix("ipc://").encode())
        if address.startswith("ipc://") and path_bytes > _IPC_PATH_MOST:
            problem = f"{address} is over {_IPC_PATH_MOST} bytes: choose a shorter one"
            raise TopologyError("cluster", "run_folder", problem)
        for actor in node.actors:
            _check_name(f"{table}.actors.{actor.name}", "", actor.name)
            if actor.mailbox < 1:
                problem = f"want a capacity of at least 1, got {actor.mailbox}"
                raise TopologyError(f"{table}.actors.{actor.name}", "mailbox", problem)


def default_run_folder(name: str, home: Path) -> Path:
    """Return the run folder of a cluster: of this user, and the same for each start.

    Args:
        name: The cluster's.
        home: What tells clusters of one name apart: the path of the cluster file.
    """
    digest = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"tensorbatch-{getpass.getuser()}" / f"{name}-{digest}"


def all_in_one(
    bundle: Path | str,
    *,
    model: str | None = None,
    listen: str | None = None,
    gateway: Mapping[str, Any] | None = None,
    executor: Mapping[str, Any] | None = None,
    placement: Path | None = None,
    drain_s: float = 10.0,
) -> Topology:
    """Return a cluster of one node with a gateway, a shard and an executor.

    Args:
        bundle: The model's bundle.
        model: The model's name; if None, that of the bundle's folder.
        listen: Where clients connect, such as ``tcp://127.0.0.1:7400``; None for nowhere, as when
            the node is embedded in a service.
        gateway: More options of the gateway.
        executor: Options of the executor.
        placement: Says where the model's tables lie, see ``ModelSpec``.
        drain_s: Time to finish what was taken.
    """
    actors = (
        _gateway(listen, gateway),
        ActorSpec(name="shard-0", class_name=SHARD),
        ActorSpec(name="executor-0", class_name=EXECUTOR, options=dict(executor or {})),
    )
    served = _served(bundle, model, ("shard-0",), placement=placement)
    return _serving(served, (NodeSpec(name="node", actors=actors),), drain_s)


def spread(
    bundle: Path | str,
    *,
    listen: str,
    model: str | None = None,
    n_shards: int = 2,
    replicas: int = 1,
    missing: str = FAIL,
    gateway: Mapping[str, Any] | None = None,
    executor: Mapping[str, Any] | None = None,
    placement: Path | None = None,
    drain_s: float = 10.0,
) -> Topology:
    """Return a cluster of a gateway, shards and an executor, each in a node of its own.

    Arguments are those of ``all_in_one`` and ``ModelSpec``; ``n_shards`` counts replicas.
    """
    shards = [ActorSpec(name=f"shard-{i}", class_name=SHARD) for i in range(n_shards)]
    engine = ActorSpec(name="executor-0", class_name=EXECUTOR, options=dict(executor or {}))
    nodes = tuple(
        NodeSpec(name=actor.name, actors=(actor,))
        for actor in (_gateway(listen, gateway), *shards, engine)
    )
    names = tuple(shard.name for shard in shards)
    served = _served(bundle, model, names, replicas=replicas, missing=missing, placement=placement)
    return _serving(served, nodes, drain_s)


GATEWAY: Final = "actors.gateway.Gateway"
SHARD: Final = "actors.shard.EmbeddingShard"
EXECUTOR: Final = "actors.executor.Executor"
UPDATER: Final = "actors.updater.Updater"


def _gateway(listen: str | None, options: Mapping[str, Any] | None) -> ActorSpec:
    own = dict(options or {})
    if listen is not None:
        own["listen"] = listen
    return ActorSpec(name="gateway", class_name=GATEWAY, options=own)


def _served(
    bundle: Path | str,
    model: str | None,
    shards: tuple[str, ...],
    *,
    replicas: int = 1,
    missing: str = FAIL,
    placement: Path | None = None,
) -> ModelSpec:
    folder = Path(bundle).resolve()
    return ModelSpec(
        name=model or folder.name,
        bundle=folder,
        shards=shards,
        executors=("executor-0",),
        replicas=replicas,
        missing=missing,
        placement=placement,
    )


def _serving(served: ModelSpec, nodes: tuple[NodeSpec, ...], drain_s: float) -> Topology:
    return Topology(
        name="tensorbatch",
        nodes=nodes,
        models={served.name: served},
        run_folder=default_run_folder("tensorbatch", served.bundle),
        drain_s=drain_s,
    )


def _check_name(table: str, key: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        problem = f"{name!r} is no name: want up to 40 letters, digits, '_', '-' and '.'"
        raise TopologyError(table, key, problem)


def _concerns(models: str | Sequence[str] | None, model: str) -> bool:
    """Return whether an option that names models, one or several or all, means this one."""
    return not models or model in ([models] if isinstance(models, str) else models)


def _check_actors(table: str, key: str, names: tuple[str, ...], homes: Mapping[str, str]) -> None:
    if not names:
        raise TopologyError(table, key, "want at least one actor")
    for name in names:
        if name not in homes:
            known = ", ".join(sorted(homes))
            raise TopologyError(table, key, f"there is no actor {name!r}; there are {known}")
        if names.count(name) > 1:
            raise TopologyError(table, key, f"actor {name!r} is named twice")


def _check_replicas(model: ModelSpec, homes: Mapping[str, str]) -> None:
    table = f"models.{model.name}"
    if model.missing not in (FAIL, DEFAULT):
        problem = f'want "{FAIL}" or "{DEFAULT}", got {model.missing!r}'
        raise TopologyError(table, "missing", problem)
    if model.replicas < 1:
        raise TopologyError(table, "replicas", f"want at least 1, got {model.replicas}")
    if len(model.shards) % model.replicas:
        problem = f"{len(model.shards)} shards cannot be {model.replicas} replicas of each group"
        raise TopologyError(table, "replicas", problem)
    for group in range(model.n_groups):
        nodes: dict[str, str] = {}
        for shard in model.replicas_of(group):
            other = nodes.setdefault(homes[shard], shard)
            if other != shard:
                problem = (
                    f"{other!r} and {shard!r}, replicas of group {group}, are both on node "
                    f"{homes[shard]!r}"
                )
                raise TopologyError(table, "shards", problem)
