"""Starts a cluster, or one node of it: ``python -m runtime.node CLUSTER.toml [--node NAME]``.

Without ``--node``, each node of the topology becomes a child process, which is started again when
it dies (``launch.py``). With it, that node runs here, in the foreground (``foreground.py``).

Ctrl-C and SIGTERM drain: nodes refuse new work, finish what they took, and the command exits with
0. A second one kills. Other exit codes: 1, it failed, or work was left when the time to drain was
over; 2, it cannot start as it is configured, and a line on standard error says why; 3, a node of
one's own lost its card, which only a new process may get back.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import trio

from kernels.lookup import implementation
from runtime import cluster_file, launch, reports
from runtime.compose import check_bundles, factories_of
from runtime.errors import StartError
from runtime.foreground import run_node
from runtime.mps import client_environment, shared_card
from runtime.reports import EXIT_FAILED, EXIT_START, Console
from runtime.topology import Topology


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    arguments = _parser().parse_args(argv)
    path: Path = arguments.cluster
    if arguments.report is None:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        tell = reports.console_reporter(Console())
    else:
        # The parent alone obeys the terminal, and tells us by SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        tell = reports.pipe_reporter(arguments.report)
    try:
        topology = cluster_file.load(path)
        check_bundles(topology)
        if arguments.node is None:
            return _run_cluster(topology, path)
        names = [node.name for node in topology.nodes]
        if arguments.node not in names:
            raise StartError(
                f"{path}: there is no node {arguments.node!r}; there are {', '.join(names)}"
            )
    except StartError as error:
        tell(reports.Failure(str(error)))
        return EXIT_START
    node = topology.node(arguments.node)
    if arguments.report is not None:
        return run_node(topology, node.name, tell, stop_signals=(signal.SIGTERM,))
    _say_lookups(topology)
    try:
        with shared_card(topology.run_folder, (node,)) as mps:
            os.environ.update(client_environment(mps, node))
            return run_node(
                topology,
                node.name,
                tell,
                stop_signals=(signal.SIGTERM, signal.SIGINT),
                on_ready=lambda: launch.say_ready(Console(), topology, (node,)),
            )
    except StartError as error:
        tell(reports.Failure(str(error)))
        return EXIT_START


def _run_cluster(topology: Topology, path: Path) -> int:
    factories_of(topology.nodes)  # a class that is not there is told before anything starts
    _say_lookups(topology)
    console = Console()
    nodes = ", ".join(node.name for node in topology.nodes)
    console.say(f"{topology.name}: starting {nodes}")
    with shared_card(topology.run_folder, topology.nodes) as mps:
        return trio.run(launch.Cluster(topology, path, console, mps=mps).run)


def _say_lookups(topology: Topology) -> None:
    """Say what does the lookups; this compiles them, so that the shards need not."""
    if topology.models:
        Console().say(implementation())


def _end_with_parent() -> None:
    """End this process when its standard input ends, as then its parent has.

    At once, and from a thread of its own: the others end as well, so there is nobody to drain for,
    and the event loop may be what is stuck.
    """
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(EXIT_FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.node",
        description="Start a TensorBatch cluster, or one of its nodes.",
    )
    parser.add_argument("cluster", type=Path, metavar="CLUSTER.toml", help="the cluster file")
    parser.add_argument("--node", metavar="NAME", help="run only this node, in the foreground")
    parser.add_argument("--report", type=int, metavar="FD", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
