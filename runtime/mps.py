"""The daemon through which a machine's nodes share a card, for as long as they run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kernels.errors import CudaError
from kernels.gpu.mps import Mps, find_control
from runtime.errors import StartError
from runtime.topology import NodeSpec

log = logging.getLogger(__name__)

_OWN: Final = 0o700


def client_environment(mps: Mps | None, node: NodeSpec) -> Mapping[str, str]:
    """Return the variables that a node's process needs, before it first calls CUDA."""
    if mps is None or node.mps is None:
        return {}
    return mps.environment(node.mps)


@contextmanager
def shared_card(run_folder: Path, nodes: Sequence[NodeSpec]) -> Iterator[Mps | None]:
    """Start the daemon if a node has a share of a card, and stop it at the end.

    Args:
        run_folder: The cluster's; the daemon has a folder of its own in it.
        nodes: Those that run on this machine, inside the ``with`` alone.

    Raises:
        StartError: It does not start; says why.
    """
    if all(node.mps is None for node in nodes):
        yield None
        return
    run_folder.mkdir(mode=_OWN, parents=True, exist_ok=True)
    try:
        mps = Mps(run_folder / "mps", find_control())
        mps.start()
    except CudaError as error:
        raise StartError(str(error)) from error
    try:
        yield mps
    finally:
        try:
            mps.stop()
        except CudaError as error:
            log.warning("%s", error)
