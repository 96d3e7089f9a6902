"""What was deployed on a node's actors: kept over their restarts and, in a file, over the node's.

A topology says with which bundle each model begins. What is deployed later is written down here by
each actor, which opens that again when it is restarted: all versions that it held, since somebody
may still use the old one or the new one already.

The file lies in the run folder. It is void for a model once the topology names another bundle
than it did when that was written: then its user has decided anew.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from runtime.topology import Topology

log = logging.getLogger(__name__)

_FORMAT: Final = 1


@attrs.frozen(kw_only=True)
class Deployed:
    """The versions of a model that an actor holds.

    Attributes:
        instead_of: The bundle that the topology names.
        current: The version in use.
        bundles: Folders of all versions, ``current`` among them.
    """

    instead_of: Path
    current: str
    bundles: Mapping[str, Path]

    @property
    def is_news(self) -> bool:
        """Whether this is anything else than what the topology says."""
        return dict(self.bundles) != {self.current: self.instead_of}


class Deployments:
    """What was deployed on the actors of one node.

    Args:
        topology: Whose models are meant.
        file: Where it is written; None to keep it in memory alone, as in an embedded service.
    """

    def __init__(self, topology: Topology, file: Path | None = None) -> None:
        self._file = file
        self._models: dict[tuple[str, str], Deployed] = {}
        if file is not None and file.exists():
            self._models = _checked(_read(file), topology, file)

    @property
    def models(self) -> Collection[tuple[str, str]]:
        """Actors and models on which something was deployed."""
        return self._models.keys()

    def get(self, actor: str, model: str) -> Deployed | None:
        """Return what was deployed; None for what the topology says."""
        return self._models.get((actor, model))

    def put(self, actor: str, model: str, deployed: Deployed) -> None:
        """Write down what an actor holds now; it is on disk on return, whole or as before.

        Blocks for the disk's time: call it in a thread, one call at a time.

        Raises:
            OSError: The file cannot be written; then nothing has changed.
        """
        models = {**self._models, (actor, model): deployed}
        if not deployed.is_news:
            del models[actor, model]
        if self._file is not None:
            _write(self._file, models)
        self._models = models


def deployments_file(topology: Topology, node: str) -> Path:
    """Return where a node's deployments are written down."""
    return topology.run_folder / f"{node}.deployed.json"


def has_deployed(topology: Topology, model: str) -> bool:
    """Return whether anything was deployed of a model on this machine's nodes."""
    return any(
        name == model
        for node in topology.nodes
        for _, name in Deployments(topology, deployments_file(topology, node.name)).models
    )


def _read(file: Path) -> dict[tuple[str, str], Deployed]:
    """Read a file; one that is damaged is reported and counts as none.

    It is replaced as a whole, so damage comes from outside; to start with what the topology says
    is better than not to start.
    """
    try:
        document: Any = json.loads(file.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']!r}")
        return {
            (actor, model): Deployed(
                instead_of=Path(each["instead_of"]),
                current=str(each["current"]),
                bundles={str(v): Path(path) for v, path in each["bundles"].items()},
            )
            for actor, models in document["actors"].items()
            for model, each in models.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.error("%s cannot be read, what was deployed is not served: %s", file, error)
        return {}


def _checked(
    models: dict[tuple[str, str], Deployed], topology: Topology, file: Path
) -> dict[tuple[str, str], Deployed]:
    kept = {}
    for (actor, model), deployed in models.items():
        spec = topology.models.get(model)
        if spec is not None and spec.bundle == deployed.instead_of:
            kept[actor, model] = deployed
            continue
        log.warning(
            "%s: model %s: the cluster file has changed since %s was deployed; it is void",
            file,
            model,
            deployed.bundles.get(deployed.current),
        )
    return kept


def _write(file: Path, models: Mapping[tuple[str, str], Deployed]) -> None:
    actors: dict[str, dict[str, Any]] = {}
    for (actor, model), each in models.items():
        actors.setdefault(actor, {})[model] = {
            "instead_of": str(each.instead_of),
            "current": each.current,
            "bundles": {version: str(path) for version, path in each.bundles.items()},
        }
    text = json.dumps({"format": _FORMAT, "actors": actors}, indent=1)
    beside = file.with_name(f"{file.name}.new")
    with beside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
