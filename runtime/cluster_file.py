"""Reads a cluster file, which is TOML, into a topology.

The file of a small cluster::

    [cluster]
    name = "movielens"            # optional: else the file's name
    run_folder = "/run/movielens" # optional: of this machine's sockets; what was deployed
    drain_s = 10                  # optional: time each node has to finish what it took

    [models.movielens]
    bundle = "bundle"             # a folder, relative to this file
    shards = ["shard-0"]          # actors; the bundle's tables are divided over them
    executors = ["executor-0"]    # actors; requests are divided over them
    replicas = 1                  # optional: with 2, the second half of the shards holds the same
                                  # as the first, and a shard and its double are on two nodes
    missing = "fail"              # optional: what requests get when all replicas of something are
                                  # gone; "default" for default rows, and answers marked so
    placement = "placement.toml"  # optional: where tables lie, see kernels/placement/file.py; else
                                  # the bundle's own placement.toml, if it has one

    [nodes.gateway]               # the nodes, in the order in which they stop
    bind = "tcp://10.0.0.1:7500"  # optional: where nodes on other machines reach this one

    [nodes.gateway.actors.gateway]
    class = "actors.gateway.Gateway"
    mailbox = 4096                # optional: the mailbox's capacity, in messages
    listen = "tcp://127.0.0.1:7400"  # the rest are options of the actor's own

    [nodes.shard-0.actors.shard-0]
    class = "actors.shard.EmbeddingShard"
    state = "/var/lib/tb/shard-0" # optional: what updates changed, on a disk that lasts; by default
                                  # in the run folder; see UpdateOptions in actors/update_shard.py

    [nodes.updater.actors.updater] # optional: takes new rows while the cluster serves, see
    class = "actors.updater.Updater"  # actors/updater.py and python -m actors.update
    listen = "tcp://127.0.0.1:7410"
    state = "/var/lib/tb/updater" # optional: what was acknowledged, on a disk that lasts

    [nodes.executor-0]
    mps = 50                      # optional: percent of a card that the node's executors get; the
                                  # daemon through which nodes share it is started and stopped, too

    [nodes.executor-0.actors.executor-0]
    class = "actors.executor.Executor"
    device = "cuda"               # optional: "host" (the default), "cuda", or "auto"
    gpu.mode = "streams"          # optional: see actors/dense.py for these and others

Messages about mistakes name file, line, table and key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from runtime.errors import TopologyError
from runtime.mailbox import CAPACITY
from runtime.topology import FAIL, ActorSpec, ModelSpec, NodeSpec, Topology, default_run_folder

T = TypeVar("T")

_KINDS: Final[Mapping[type, str]] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    dict: "a table",
    list: "a list of texts",
}


def load(path: Path | str) -> Topology:
    """Read a cluster file.

    Raises:
        TopologyError: The file cannot be read, or is wrong; says where.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError("", "", f"cannot be read: {error}", place=f"{path}: ") from error
    return loads(text, path)


def loads(text: str, path: Path) -> Topology:
    """Read the text of a cluster file; ``path`` is what paths in it are relative to.

    Raises:
        TopologyError: It is wrong; says where.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TopologyError("", "", f"no TOML: {error}", place=f"{path}: ") from error
    try:
        return _topology(_Table("", document), path)
    except TopologyError as error:
        line = _line_of(text, error.table, error.key)
        place = f"{path}:{line}: " if line else f"{path}: "
        raise TopologyError(error.table, error.key, error.problem, place=place) from None


@attrs.define
class _Table:
    """A table of the file, whose keys are taken out one by one: what is left is unknown."""

    name: str
    left: dict[str, Any]
    key: str = ""

    def take(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Take a value of the wanted type; a key without default must be there."""
        if key not in self.left:
            if default is not None:
                return default
            raise TopologyError(self.name, key, f"is missing: want {_KINDS[kind]}")
        value = self.left.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (isinstance(value, list) and not _are_texts(value)):
            raise TopologyError(self.name, key, f"want {_KINDS[kind]}, got {value!r}")
        return value

    def tables(self, key: str) -> list[_Table]:
        """Take a table of tables, in the file's order."""
        inner = self.take(key, dict, {})
        prefix = f"{self.name}.{key}" if self.name else key
        for name, value in inner.items():
            if not isinstance(value, dict):
                raise TopologyError(prefix, name, f"want a table, got {value!r}")
        return [_Table(f"{prefix}.{name}", dict(value), name) for name, value in inner.items()]

    def finish(self, *known: str) -> None:
        """Refuse what was not taken."""
        for key, value in self.left.items():
            if isinstance(value, dict):
                table = f"{self.name}.{key}" if self.name else key
                raise TopologyError(table, "", f"is unknown; there are {', '.join(known)}")
            raise TopologyError(self.name, key, f"is unknown; there are {', '.join(known)}")


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _topology(root: _Table, path: Path) -> Topology:
    cluster = _Table("cluster", root.take("cluster", dict, {}))
    name = cluster.take("name", str, path.stem)
    run_folder = cluster.take("run_folder", str, "")
    drain_s = cluster.take("drain_s", float, 10.0)
    cluster.finish("name", "run_folder", "drain_s")
    models = [_model(table, path) for table in root.tables("models")]
    nodes = [_node(table) for table in root.tables("nodes")]
    root.finish("cluster", "models", "nodes")
    return Topology(
        name=name,
        nodes=tuple(nodes),
        models={model.name: model for model in models},
        run_folder=path.parent / run_folder if run_folder else default_run_folder(name, path),
        drain_s=drain_s,
    )


def _model(table: _Table, path: Path) -> ModelSpec:
    bundle = table.take("bundle", str)
    shards = table.take("shards", list)
    executors = table.take("executors", list)
    replicas = table.take("replicas", int, 1)
    missing = table.take("missing", str, FAIL)
    placement = table.take("placement", str, "")
    table.finish("bundle", "shards", "executors", "replicas", "missing", "placement")
    return ModelSpec(
        name=table.key,
        bundle=(path.parent / bundle).resolve(),
        shards=tuple(shards),
        executors=tuple(executors),
        replicas=replicas,
        missing=missing,
        placement=(path.parent / placement).resolve() if placement else None,
    )


def _node(table: _Table) -> NodeSpec:
    bind = table.take("bind", str, "")
    mps = table.take("mps", int) if "mps" in table.left else None
    actors = [_actor(each) for each in table.tables("actors")]
    table.finish("bind", "mps", "actors")
    return NodeSpec(name=table.key, actors=tuple(actors), bind=bind or None, mps=mps)


def _actor(table: _Table) -> ActorSpec:
    class_name = table.take("class", str)
    mailbox = table.take("mailbox", int, CAPACITY)
    return ActorSpec(
        name=table.key, class_name=class_name, mailbox=mailbox, options=dict(table.left)
    )


_HEADER: Final = re.compile(r"\s*\[([^\[\]]+)\]")
_KEY: Final = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""")


def _line_of(text: str, table: str, key: str) -> int | None:
    """Return the line of a key, else of its table's header; None if the file does not show it."""
    current, header = "", None
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _HEADER.match(line):
            current = ".".join(part.strip().strip("\"'") for part in match[1].split("."))
            if current == table:
                header = number
        elif current == table and (match := _KEY.match(line)) and match[1] == key:
            return number
    return header
