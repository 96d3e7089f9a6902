"""Where a model's tables lie: in the card's memory, whole in a shard, divided over several, cached.

A table is divided into *segments*, the unit of placement: of a table of keys, by the keys' hash; of
any other, stretches of rows. A *group* is a logical shard: it holds *pieces*, each a stretch of a
table's segments, and has one or more replicas, which are actors.

Reading order: ``placement.py`` (the value), ``derive.py`` (the one that a manifest alone gives),
``check.py`` (whether one fits a manifest), ``file.py`` (``placement.toml``). Planning: ``skew.py``
(keys by a power law), ``traffic.py`` and ``trace.py`` (what requests ask for), ``costs.py``,
``planner.py`` with ``caches.py`` and ``divide.py``, ``report.py``, ``command.py``. For sizes that
no test machine has: ``synthetic.py`` and ``simulate.py``.
"""

from kernels.bundle.load import PLACEMENT_FILE
from kernels.placement.check import check_placement
from kernels.placement.derive import derive
from kernels.placement.file import (
    placement_for,
    read_placement,
    write_placement,
)
from kernels.placement.placement import CachedTable, Piece, Placement

__all__ = [
    "PLACEMENT_FILE",
    "CachedTable",
    "Piece",
    "Placement",
    "check_placement",
    "derive",
    "placement_for",
    "read_placement",
    "write_placement",
]
