"""Hot rows: of a table whose rows lie elsewhere, those that are asked for most, kept at hand.

Key popularity is a power law: a hundredth of a table's rows serves most of what is asked. Which
rows, is learned from the keys that come. The policy is TinyLFU's (Einziger, Friedman and Manes,
ACM Transactions on Storage 2017): a row gets a place only if it was lately asked for more often
than the row that would lose its own. What is asked for once never pushes out what is asked for
often.

* Rows that are held count their *uses*, exactly. The victim is the least used of a group of 16, one
  group after the other: a search reads one line of memory, and needs no list to be kept in order.
* Keys that are not held are counted in a *sketch*, four counters of 4 bits a key in one line of
  memory. Who loses a place takes its count along.
* After ten times as many keys as there are rows, all counts are halved, so that the past fades. A
  line is halved when it is next looked at: there is no sweep, and no batch waits for one.

A row's age counts from when its fetch was *sent*. An update that the shard applies after that is at
most ``stale_s`` later seen by every batch, whatever becomes of messages that say what has changed;
these only bring it forward. Replicas that lag behind add their lag.

Read in this order: ``sizes`` (what a bound in bytes holds), ``plain`` (the policy, in Python),
``rows`` (the same in C, and what is called), ``tables`` (several tables in one call), ``slots``
(rows that lie on a card), ``claims`` (who fetches what is missing, so that it is fetched once),
``copying`` (rows to their places).
"""

from kernels.hot._c import implementation
from kernels.hot.claims import Claims
from kernels.hot.copying import copy_rows
from kernels.hot.rows import HotRows
from kernels.hot.sizes import HotStatistics, Sizes
from kernels.hot.slots import LOST, Placed, SlotSet
from kernels.hot.tables import HotSet

__all__ = [
    "LOST",
    "Claims",
    "HotRows",
    "HotSet",
    "HotStatistics",
    "Placed",
    "Sizes",
    "SlotSet",
    "copy_rows",
    "implementation",
]
