"""From a topology to actors that run: the one place where classes are found by their names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

from kernels.errors import BundleError, DeviceLost, GraphError, SpecError, StateError
from runtime.deployed import has_deployed
from runtime.errors import StartError
from runtime.host import Factory
from runtime.topology import ActorSpec, NodeSpec, Topology
from transport.errors import AddressError

HOPELESS: Final = (
    StartError,
    AddressError,
    BundleError,
    GraphError,
    SpecError,
    StateError,
    OSError,
)
"""Of what is wrong with what a node was given, at its start: a restart finds the same again."""

FATAL: Final = (DeviceLost,)
"""What ends the whole process: whoever started it starts another, and that may go better."""


def factories_of(nodes: tuple[NodeSpec, ...]) -> dict[str, Factory]:
    """Return the classes of the nodes' actors by the actors' names, in order.

    Raises:
        StartError: There is no such class; says which.
    """
    return {actor.name: find_class(actor) for node in nodes for actor in node.actors}


def find_class(actor: ActorSpec) -> Factory:
    """Import the class of an actor.

    Raises:
        StartError: There is no such class, or it has no ``run``.
    """
    module_name, _, class_name = actor.class_name.rpartition(".")
    try:
        found: Any = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and needs something that is not
        raise _no_class(actor, f"there is no module {error.name!r}") from error
    except AttributeError as error:
        raise _no_class(actor, f"module {module_name!r} has no {class_name!r}") from error
    except ValueError as error:
        raise _no_class(actor, "want a dotted name, MODULE.CLASS") from error
    if not isinstance(found, type) or not callable(getattr(found, "run", None)):
        raise _no_class(actor, "it is no class with a run method")
    return found


def _no_class(actor: ActorSpec, why: str) -> StartError:
    return StartError(f"actor {actor.name}: class {actor.class_name!r}: {why}")


def check_bundles(topology: Topology) -> None:
    """Look whether the bundles are there at all, before anything is started.

    A model of which another one was deployed needs the topology's no longer: its actors look.

    Raises:
        StartError: One is not; says which.
    """
    for model in topology.models.values():
        if not model.bundle.is_dir() and not has_deployed(topology, model.name):
            raise StartError(f"model {model.name}: there is no bundle {model.bundle}")


def addresses(nodes: tuple[NodeSpec, ...]) -> Mapping[str, str]:
    """Return where clients connect: the option ``listen`` of the actors that have it."""
    return {
        actor.name: str(actor.options["listen"])
        for node in nodes
        for actor in node.actors
        if actor.options.get("listen")
    }
