"""A shard's side of live updates: which versions take them, where their state is, who serves them.

The state of a version lies in a folder of its own, below the shard's: it is of these segments of
these tables, and another division of the tables over shards begins with nothing, which the updater
notices.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import attrs
import trio
from attrs.validators import ge, in_, instance_of, optional

from actors.update_gate import Gate
from actors.update_replica import Replica
from actors.update_routes import Routes, updater_of
from kernels.bundle.load import Bundle
from kernels.store.delta import Delta
from kernels.store.log import Fsync
from kernels.store.state import ChangingTable, UpdateState
from kernels.store.table import StoredTable
from runtime.actor import Context, Envelope
from runtime.metrics import Metrics
from transport.errors import Overloaded, Unavailable
from transport.messages import ErrorReply
from transport.updates import SeedOrder, SeedRequest, UpdateAck, UpdateBatch

log = logging.getLogger(__name__)

Question: TypeAlias = UpdateBatch | SeedOrder | SeedRequest
UPDATE_QUESTIONS: Final = (UpdateBatch, SeedOrder, SeedRequest)


@attrs.frozen(kw_only=True)
class UpdateOptions:
    """The options of a shard that concern updates; they matter where a model has an updater.

    Attributes:
        state: Folder for what updates have changed; by default below the run folder, which may be
            on a disk that a restart of the machine clears. Give one that lasts.
        fsync: ``batch``: what is acknowledged survives the machine. ``never``: only the process.
        compact_bytes: A log of this size is compacted; of the snapshot's, where that is larger.
    """

    state: str | None = attrs.field(default=None, validator=optional(instance_of(str)))
    fsync: Fsync = attrs.field(default="batch", validator=in_(("batch", "never")))
    compact_bytes: int = attrs.field(default=256 << 20, validator=[instance_of(int), ge(1)])


class ShardUpdates:
    """The versions of a shard's models that take updates."""

    def __init__(
        self, context: Context, metrics: Metrics, gate: Gate, options: UpdateOptions
    ) -> None:
        """Hold nothing yet.

        Args:
            context: The shard's.
            metrics: The shard's.
            gate: Where its lookups in threads go through.
            options: The shard's.
        """
        self._context = context
        self._metrics = metrics
        self._gate = gate
        self._options = options
        self._opened: dict[tuple[str, str], UpdateState] = {}
        self._replicas: dict[tuple[str, str], Replica] = {}

    def open(self, model: str, bundle: Bundle, tables: Mapping[str, StoredTable]) -> Replica | None:
        """Load what updates have changed of a version, and let its tables see that; for a thread.

        Args:
            model: The model's name.
            bundle: Of the version.
            tables: The shard's, opened; deltas are attached to them.

        Returns:
            What is to be given to ``start``; None if the model takes no updates.

        Raises:
            StateError: The state is damaged.
            StartError: The topology has two updaters of the model.
            OSError: The folder cannot be read or written.
        """
        spec = self._context.topology.models[model]
        if updater_of(self._context.topology, model) is None:
            return None
        routes = Routes.of(spec, bundle)
        changing: dict[str, ChangingTable] = {}
        for name, table in tables.items():
            header = table.header
            delta = Delta(header.dim, header.dtype, native=table.native is not None)
            changing[name] = ChangingTable(
                dtype=header.dtype,
                row_bytes=header.row_bytes,
                rows=header.rows,
                keyed=header.keyed,
                n_segments=header.n_segments,
                segments=table.segments,
                changed=delta,
            )
            table.attach(delta)
        group = spec.group_of(self._context.name)
        pieces = sorted(attrs.astuple(piece) for piece in routes.placement.groups[group])
        state = UpdateState(
            self._folder(model, routes.version, pieces), changing, fsync=self._options.fsync
        )
        self._opened[model, routes.version] = state
        return Replica(
            self._context,
            self._metrics,
            self._gate,
            state,
            model=model,
            version=routes.version,
            cached=frozenset(each.table for each in routes.placement.cached),
            executors=spec.executors,
            compact_bytes=self._options.compact_bytes,
        )

    def start(self, replica: Replica, nursery: trio.Nursery) -> None:
        """Serve a version's updates until ``close``."""
        self._opened.pop((replica.model, replica.version))
        self._replicas[replica.model, replica.version] = replica
        nursery.start_soon(replica.run)

    async def close(self, replica: Replica) -> None:
        """Serve a version's updates no more; its state stays on disk."""
        key = replica.model, replica.version
        if self._replicas.pop(key, None) is not None:
            await replica.aclose()
        elif (state := self._opened.pop(key, None)) is not None:
            state.close()

    def close_opened(self) -> None:
        """Close what was opened and not started: at the end of the actor, whatever it is."""
        while self._opened:
            self._opened.popitem()[1].close()

    def take(self, envelope: Envelope) -> None:
        """Take one of ``UPDATE_QUESTIONS``; what takes long is left to the version's tasks."""
        message = envelope.message
        assert isinstance(message, UPDATE_QUESTIONS)
        replica = self._replicas.get((message.model, message.version))
        if isinstance(message, SeedRequest):
            if envelope.reply is None:
                self._metrics.count("strays")
            elif replica is None:
                text = f"{self._context.name}: {_absent(message)}"
                envelope.reply(ErrorReply(request_id=0, code="unavailable", message=text))
            else:
                replica.put_ask(message, envelope.reply)
        elif replica is None:
            self._refuse(message)
        else:
            replica.put(message, envelope.received_at)

    def statistics(self) -> Mapping[str, Any]:
        """Return how far each model's updates have come, for JSON."""
        return {
            f"updates.{replica.model}.{replica.version[:12]}": replica.statistics()
            for replica in self._replicas.values()
        }

    def _refuse(self, message: UpdateBatch | SeedOrder) -> None:
        ack = UpdateAck(
            replica=self._context.name,
            model=message.model,
            version=message.version,
            stream=0,
            applied=0,
            code="unavailable",
            message=_absent(message),
        )
        try:
            self._context.ref(message.updater).tell(ack)
        except (Overloaded, Unavailable, KeyError):
            self._metrics.count("unacknowledged")

    def _folder(self, model: str, version: str, pieces: list[Any]) -> Path:
        home = self._options.state
        if home is None:
            folder = self._context.topology.run_folder / "state" / self._context.name
            log.warning("%s: keeps updates in %s; `state` says where", self._context.name, folder)
        else:
            folder = Path(home)
        digest = hashlib.sha256(json.dumps(pieces).encode()).hexdigest()
        return folder / quote(model, safe="") / f"{version[:16]}-{digest[:8]}"


def _absent(message: Question) -> str:
    return f"no updates of {message.model} version {message.version[:12]} here"
