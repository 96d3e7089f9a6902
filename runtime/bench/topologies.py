"""The cluster files of a benchmark: one node with everything, or a node for each actor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

TOPOLOGIES: Final = ("all-in-one", "spread")


def cluster_text(bundle: Path, topology: str, n_shards: int, listen: str, run_folder: Path) -> str:
    """Return a topology file, TOML, that serves a bundle under its folder's name.

    Args:
        bundle: The bundle's folder.
        topology: One of ``TOPOLOGIES``.
        n_shards: Embedding shards; an all-in-one node has one.
        listen: Where clients connect.
        run_folder: Where the nodes' sockets go.
    """
    shards = [f"shard-{k}" for k in range(1 if topology == "all-in-one" else n_shards)]
    classes = {"gateway": "actors.gateway.Gateway"}
    classes |= dict.fromkeys(shards, "actors.shard.EmbeddingShard")
    classes |= {"executor-0": "actors.executor.Executor"}
    lines = [
        "[cluster]",
        'name = "bench"',
        f"run_folder = {json.dumps(str(run_folder))}",
        "",
        f"[models.{json.dumps(bundle.name)}]",
        f"bundle = {json.dumps(str(bundle.resolve()))}",
        f"shards = {json.dumps(shards)}",
        'executors = ["executor-0"]',
    ]
    for actor, class_name in classes.items():
        node = "node" if topology == "all-in-one" else actor
        lines += ["", f"[nodes.{node}.actors.{actor}]", f'class = "{class_name}"']
        if actor == "gateway":
            lines.append(f'listen = "{listen}"')
    return "\n".join([*lines, ""])
