"""The cluster files of a benchmark: one node with everything, or a node for each actor."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from attrs.validators import ge, in_, instance_of, le, optional

TOPOLOGIES: Final = ("all-in-one", "spread")
DEVICES: Final = ("host", "cuda")
MODES: Final = ("streams", "contexts", "green")
# Largest error of a score: sums of float32 in another order, or values stored in fewer bits.
_ERRORS: Final = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 2e-2}


@attrs.frozen(kw_only=True)
class Deployment:
    """How executors run; None leaves what they do unless told otherwise.

    Attributes:
        windows: Whether requests are merged.
        n_executors: Each further one has a node of its own, and so has the first then.
        mps: Percent of a card that each executor's node gets; None for no MPS.
        cache: Folder of compiled kernels.
    """

    device: str = attrs.field(default="host", validator=in_(DEVICES))
    lanes: int | None = attrs.field(default=None, validator=optional([instance_of(int), ge(1)]))
    mode: str | None = attrs.field(default=None, validator=optional(in_(MODES)))
    windows: bool = True
    n_executors: int = attrs.field(default=1, validator=[instance_of(int), ge(1)])
    mps: int | None = attrs.field(
        default=None, validator=optional([instance_of(int), ge(1), le(100)])
    )
    precision: str | None = attrs.field(default=None, validator=optional(in_(tuple(_ERRORS))))
    max_rows: int | None = attrs.field(default=None, validator=optional([instance_of(int), ge(1)]))
    cache: Path | None = None

    def __attrs_post_init__(self) -> None:
        if self.device == "host":
            for name in ("mode", "mps", "precision", "cache"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name}: is for a card: want --device cuda")

    @property
    def largest_error(self) -> float:
        """How far scores may be from the whole model's."""
        on_card = self.precision or "fp16"
        return _ERRORS["fp32" if self.device == "host" else on_card]

    def figures(self) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "device": self.device,
            "executors": self.n_executors,
            "mps": self.mps,
            "mode": self.mode,
            "lanes": self.lanes,
            "windows": self.windows,
            "precision": self.precision,
            "max_rows": self.max_rows,
        }

    def option_lines(self) -> list[str]:
        """Return the options of an executor, as lines of TOML."""
        options: dict[str, object] = {
            "device": None if self.device == "host" else self.device,
            "lanes": self.lanes,
            "max_rows": self.max_rows,
            "max_requests": None if self.windows else 1,
            "gpu.mode": self.mode,
            "gpu.precision": self.precision,
            "gpu.cache": None if self.cache is None else str(self.cache.resolve()),
        }
        return [f"{key} = {json.dumps(v)}" for key, v in options.items() if v is not None]


def deployments(
    first: Deployment,
    *,
    lanes: Sequence[int | None],
    modes: Sequence[str | None],
    windows: Sequence[bool],
    executors: Sequence[int],
    mps: Sequence[int | None],
) -> list[Deployment]:
    """Return every combination of what is to be compared, in the order of reading."""
    return [
        attrs.evolve(
            first, lanes=n, mode=mode, windows=merged, n_executors=n_executors, mps=percent
        )
        for n_executors, percent, mode, n, merged in itertools.product(
            executors, mps, modes, lanes, windows
        )
    ]


def cluster_text(
    bundle: Path,
    topology: str,
    n_shards: int,
    listen: str,
    run_folder: Path,
    deployment: Deployment | None = None,
) -> str:
    """Return a topology file, TOML, that serves a bundle under its folder's name.

    Args:
        bundle: The bundle's folder.
        topology: One of ``TOPOLOGIES``.
        n_shards: Embedding shards; an all-in-one node has one.
        listen: Where clients connect.
        run_folder: Where the nodes' sockets go.
        deployment: How executors run; None for one on the host.
    """
    deployment = deployment or Deployment()
    shards = [f"shard-{k}" for k in range(1 if topology == "all-in-one" else n_shards)]
    classes = {"gateway": "actors.gateway.Gateway"}
    classes |= dict.fromkeys(shards, "actors.shard.EmbeddingShard")
    executors = [f"executor-{k}" for k in range(deployment.n_executors)]
    classes |= dict.fromkeys(executors, "actors.executor.Executor")
    lines = [
        "[cluster]",
        'name = "bench"',
        f"run_folder = {json.dumps(str(run_folder))}",
        "",
        f"[models.{json.dumps(bundle.name)}]",
        f"bundle = {json.dumps(str(bundle.resolve()))}",
        f"shards = {json.dumps(shards)}",
        f"executors = {json.dumps(executors)}",
    ]
    # A share of a card is a node's, and its gateway needs none.
    apart = topology != "all-in-one" or len(executors) > 1 or deployment.mps is not None
    for actor, class_name in classes.items():
        is_executor = actor in executors
        node = actor if topology != "all-in-one" or (is_executor and apart) else "node"
        if is_executor and deployment.mps is not None:
            lines += ["", f"[nodes.{node}]", f"mps = {deployment.mps}"]
        lines += ["", f"[nodes.{node}.actors.{actor}]", f'class = "{class_name}"']
        if actor == "gateway":
            lines.append(f'listen = "{listen}"')
        if is_executor:
            lines += deployment.option_lines()
    return "\n".join([*lines, ""])
