"""Deploys a bundle on a running cluster: ``python -m actors.deploy CLUSTER.toml MODEL BUNDLE/``.

The command reaches the nodes as they reach each other, at the addresses that the cluster file says,
so it can be run on any machine from which the nodes can be reached, with the same file. It is no
actor of the cluster: see ``runtime.deployment``, which does the work, for what that means if it is
killed.

Exit codes: 0, the bundle is served (or was already); 1, it is not, or not everywhere, and a line on
standard error says why and what serves; 2, the cluster file or the command is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio

from runtime import cluster_file
from runtime.bus import Bus
from runtime.deployment import Deployment, Outcome
from runtime.errors import DeploymentFailed, StartError
from runtime.reports import EXIT_FAILED, EXIT_OK, EXIT_START, Console
from runtime.supervisor import sole
from runtime.topology import ActorSpec, NodeSpec, Topology


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        topology = cluster_file.load(arguments.cluster)
        if not 0 <= arguments.patience < float("inf"):
            raise StartError(f"--patience: want seconds, got {arguments.patience:g}")
        outcome = trio.run(_deploy, topology, arguments, console)
    except StartError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_START
    except DeploymentFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped midway: deploy again, this bundle or the one before\n")
        return EXIT_FAILED
    version = outcome.version[:12]
    if outcome.previous:
        console.say(f"{arguments.model}: serves version {version}")
    else:
        console.say(f"{arguments.model}: version {version} is what it serves already")
    return EXIT_OK


async def _deploy(topology: Topology, arguments: argparse.Namespace, console: Console) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="tensorbatch-") as folder:
        # A node of its own, of which the others know nothing: answers need no address.
        name = f"deploy-{os.getpid()}"
        own = NodeSpec(
            name=name,
            actors=(ActorSpec(name=name, class_name="actors.deploy"),),
            bind=f"ipc://{folder}/node",
        )
        bus = Bus(attrs.evolve(topology, nodes=(*topology.nodes, own)), name)
        deployment = Deployment(
            topology,
            bus.ref,
            arguments.model,
            arguments.bundle,
            say=console.say,
            any_origin=arguments.any_origin,
            without=arguments.without,
            patience_s=arguments.patience,
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(bus.run, lambda name: None)
                outcome = await deployment.run()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # the nursery is our own affair
            error = sole(group)
            raise error from error.__cause__
        return outcome


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m actors.deploy",
        description="Serve a model of a running cluster with another bundle, without a gap.",
    )
    parser.add_argument("cluster", type=Path, metavar="CLUSTER.toml", help="the cluster file")
    parser.add_argument("model", metavar="MODEL", help="the model's name in it")
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE/", help="the bundle, at the same path on all machines"
    )
    parser.add_argument(
        "--any-origin",
        action="store_true",
        help="even if the bundle was built from a model of another name",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="ACTOR",
        help="leave out this shard or executor, whose machine is down; may be given again",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long an actor may be silent, or requests stay with the old version (30)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
