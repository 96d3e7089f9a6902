"""Asks shards for the parts of batches: does what the gateway's book says (``asking.py``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import trio

from actors.asking import Asking, Nobody, Todo
from actors.probing import Prober
from actors.scatter import ModelFront, Scattered
from kernels.errors import KernelsError
from runtime.actor import Context
from runtime.metrics import Metrics
from runtime.topology import DEFAULT
from transport.errors import Overloaded, RequestError, Unavailable
from transport.messages import PartsLate, ScoresBatch
from transport.values import ERROR_CODES, OK

GiveUp = Callable[[int, str, str], None]


class Asker:
    """The gateway's way to the shards. Used from one event loop.

    Args:
        context: The gateway's.
        metrics: Shared with the gateway.
        give_up: Called with a batch, an error code and its reason, if a part cannot be had.
    """

    def __init__(self, context: Context, metrics: Metrics, give_up: GiveUp) -> None:
        self._context = context
        self._metrics = metrics
        self._give_up = give_up
        self._asking = Asking()
        self._fronts: dict[int, ModelFront] = {}  # of the batches in flight
        self._prober = Prober(context, self._asking.replicas.dead, self._is_dead)

    def __len__(self) -> int:
        """Return how many batches' lookups are kept."""
        return len(self._asking)

    def start(self, nursery: trio.Nursery) -> None:
        """Find out which replicas serve; a nursery runs what takes time."""
        self._prober.start(nursery)
        for model in self._context.topology.models.values():
            for name in model.shards if model.replicas > 1 else ():
                self._prober.probe(name)

    def begin(self, seq: int, front: ModelFront, scattered: Scattered, deadline: float) -> None:
        """Ask for all parts of a batch whose head the executor has.

        Args:
            seq: The batch's number, never used before.
            front: Of its model.
            scattered: What is to be asked.
            deadline: When nobody waits for it any more.
        """
        now = trio.current_time()
        self._fronts[seq] = front
        self._do(self._asking.begin(seq, scattered.lookups, deadline, now))

    def late(self, message: PartsLate) -> None:
        """Take an executor's word that parts are late, or have failed."""
        now = trio.current_time()
        seq = message.seq
        rows = zip(
            message.parts.tolist(), message.attempts.tolist(), message.codes.tolist(), strict=True
        )
        for part, attempt, code in rows:
            if code == OK:
                for name in self._asking.asked_of(seq, part):
                    self._prober.probe(name)
                self._do(self._asking.late(seq, part, now))
            else:
                name = ERROR_CODES[code]
                todo = self._asking.failed(seq, part, attempt, name, message.message, now)
                self._do(todo)

    def settled(self, scores: ScoresBatch) -> None:
        """Take an executor's word that all parts of a batch have come."""
        if scores.seq in self._fronts:
            del self._fronts[scores.seq]
            seconds = [us * 1e-6 for us in scores.part_us.tolist()]
            attempts = scores.part_attempts.tolist()
            self._asking.settled(scores.seq, attempts, seconds, trio.current_time())

    def forget(self, seq: int) -> None:
        """Forget a batch that nobody waits for; one that is settled is passed over."""
        if self._fronts.pop(seq, None) is not None:
            self._asking.settled(seq, (), (), trio.current_time())

    def count(self) -> None:
        """Bring the metrics up to date."""
        for name, n in self._asking.counts().items():
            self._metrics.count(name, n)

    @property
    def n_dead(self) -> int:
        """How many replicas are known to be dead."""
        return len(self._asking.replicas.dead)

    def _do(self, todo: Iterable[Todo]) -> None:
        queue = deque(todo)
        while queue:
            each = queue.popleft()
            if each.seq not in self._fronts:
                continue  # it was given up meanwhile
            if isinstance(each, Nobody):
                self._nobody(each)
                continue
            now = trio.current_time()
            try:
                self._context.ref(each.replica).tell(each.lookup)
            except Unavailable as error:
                queue.extend(self._died(each.replica, str(error)))
            except Overloaded as error:
                queue.extend(self._asking.refused(each, error.code, str(error), now))

    def _died(self, name: str, how: str) -> list[Todo]:
        self._metrics.count("dead_replicas", name not in self._asking.replicas.dead)
        self._prober.probe(name)
        return self._asking.died(name, trio.current_time(), how)

    def _is_dead(self, name: str, how: str) -> None:
        self._do(self._died(name, how))

    def _nobody(self, part: Nobody) -> None:
        """Do without a part, or give its batch up, as the model's user wants."""
        front = self._fronts[part.seq]
        route = front.parts[part.part]
        message = f"{part.message or 'no answer'}; no replica is left of {route.holds}"
        if front.missing != DEFAULT or part.code != Unavailable.code:
            self._give_up(part.seq, part.code, message)
            return
        self._metrics.count("default_parts")
        try:
            rows = front.defaults.part(part.lookup, part.attempt)
            self._context.ref(part.lookup.executor).tell(rows)
        except RequestError as error:
            self._give_up(part.seq, error.code, str(error))
        except KernelsError as error:
            self._give_up(part.seq, "internal", f"default rows: {error}")
