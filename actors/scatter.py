"""One model as the gateway sees it: requests to ids, ids to the messages of a batch."""

from __future__ import annotations

from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.defaults import DefaultRows
from actors.fetch import FetchLayout, Wanted
from actors.layouts import placement_of
from kernels.bundle.load import Bundle
from kernels.features.blocks import ParsedBatch
from kernels.features.parser import Parser
from kernels.lookup import ShardLayout
from runtime.actor import Context, Ref
from transport.codec import ScoreReplyEncoder
from transport.messages import Batch, LookupBatch, ScoreReply

_NO_KEYS: Final = np.empty(0, np.int64)
_NO_SPLITS: Final = np.empty(0, np.int32)


@attrs.frozen(eq=False)
class PartRoute:
    """Whom to ask for one part of a batch, and for what.

    Attributes:
        replicas: The actors of the group, any of which can answer; none where that is for the
            batch's executor itself.
        user: What the group pools of the user side.
        candidate: The same of candidates.
        holds: What the group holds, for people.
    """

    replicas: tuple[str, ...]
    user: ShardLayout
    candidate: ShardLayout
    holds: str

    @property
    def pools(self) -> bool:
        """Whether the group pools something, so that every batch has this part."""
        return self.user.width > 0 or self.candidate.width > 0


@attrs.frozen(eq=False)
class Scattered:
    """What is said about a batch.

    Attributes:
        head: To the executor.
        lookups: For each part that the batch has, the replicas that can answer, and what to ask
            one of them.
        device: To the executor too, if tables lie on its card.
    """

    head: Batch
    lookups: list[tuple[tuple[str, ...], LookupBatch]]
    device: LookupBatch | None


@attrs.frozen(kw_only=True, eq=False)
class ModelFront:
    """The gateway's side of one version of a model.

    Attributes:
        parts: Whom to ask for each part of a batch.
        fetch: The tables that are fetched, if there are any.
        device: What the executor itself is asked, as the part after these.
        missing: What becomes of requests when all replicas of a group are gone; see ``ModelSpec``.
        defaults: Makes parts of default rows.
        output_names: Of the model's outputs; ``output_widths`` are their columns in the scores.
        encoder: Of replies to clients.
    """

    name: str
    bundle: Bundle
    parser: Parser
    parts: list[PartRoute]
    fetch: FetchLayout | None
    device: tuple[ShardLayout, ShardLayout] | None
    missing: str
    defaults: DefaultRows
    executors: list[Ref]
    output_names: tuple[str, ...]
    output_widths: tuple[int, ...]
    encoder: ScoreReplyEncoder

    @property
    def version(self) -> str:
        """The bundle's."""
        return self.bundle.manifest.version

    def describe(self) -> dict[str, Any]:
        """Return what a client may want to know of the model, for JSON."""
        return {
            "version": self.version,
            "features": self.parser.spec.describe(),
            "outputs": [
                {"name": output.name, "width": output.width}
                for output in self.bundle.manifest.outputs
            ],
        }

    def reply(
        self, request_id: int, scores: NDArray[np.float32], *, degraded: bool = False
    ) -> ScoreReply:
        """Return the answer that carries these scores."""
        return ScoreReply(
            request_id=request_id,
            outputs=self.output_names,
            widths=self.output_widths,
            scores=scores,
            degraded=degraded,
        )

    def no_scores(self, request_id: int) -> ScoreReply:
        """Return the answer to a request without candidates."""
        return self.reply(request_id, np.empty((0, sum(self.output_widths)), np.float32))

    def wanted(self, parsed: ParsedBatch) -> Wanted | None:
        """Return what a batch wants of fetched tables; None where there are none.

        Raises:
            LookupFailed: An id is outside its table.
        """
        if self.fetch is None:
            return None
        return self.fetch.split(parsed.user.ids, parsed.candidate.ids)

    def messages(
        self,
        parsed: ParsedBatch,
        wanted: Wanted | None,
        budgets_us: NDArray[np.int64],
        *,
        gateway: str,
        seq: int,
        executor: str,
    ) -> Scattered:
        """Return what the executor and the shards are told about a batch.

        Args:
            parsed: The batch.
            wanted: What ``wanted`` says of it.
            budgets_us: int64 ``[K]``, time left of each of its requests.
            gateway: Where the executor sends scores.
            seq: The batch's number.
            executor: Where the shards send their rows; it is asked itself for what its card holds.
        """
        user, candidate = parsed.user, parsed.candidate
        patience_us = int(budgets_us.max())

        def lookup(
            part: int,
            of_user: ShardLayout,
            of_candidate: ShardLayout,
            keys: NDArray[np.int64] = _NO_KEYS,
            key_splits: NDArray[np.int32] = _NO_SPLITS,
        ) -> LookupBatch:
            return LookupBatch(
                gateway=gateway,
                seq=seq,
                model=self.name,
                version=self.version,
                executor=executor,
                part=part,
                budget_us=patience_us,
                user_ids=_rows(user.ids, of_user.id_rows),
                user_weights=_rows(user.weights, of_user.weight_rows),
                candidate_ids=_rows(candidate.ids, of_candidate.id_rows),
                candidate_weights=_rows(candidate.weights, of_candidate.weight_rows),
                keys=keys,
                key_splits=key_splits,
            )

        lookups = []
        for part, route in enumerate(self.parts):
            layouts, replicas = (route.user, route.candidate), route.replicas or (executor,)
            if wanted is not None and part in wanted.keys:
                keys = wanted.keys[part], wanted.key_splits[part]
                lookups.append((replicas, lookup(part, *layouts, *keys)))
            elif route.pools:
                lookups.append((replicas, lookup(part, *layouts)))
        slots: dict[str, NDArray[Any]] = {}
        if self.fetch is not None and wanted is not None:
            slots = {
                "user_slots": wanted.user_slots,
                "user_slot_weights": _rows(user.weights, self.fetch.user.weight_rows),
                "candidate_slots": wanted.candidate_slots,
                "candidate_slot_weights": _rows(
                    candidate.weights, self.fetch.candidate.weight_rows
                ),
                "part_rows": wanted.part_rows,
            }
        head = Batch(
            gateway=gateway,
            seq=seq,
            model=self.name,
            version=self.version,
            n_parts=len(lookups) + (self.device is not None),
            n_rows=parsed.n_rows,
            budgets_us=budgets_us,
            user_values=user.values,
            candidate_values=candidate.values,
            **slots,
        )
        device = None if self.device is None else lookup(len(self.parts), *self.device)
        return Scattered(head, lookups, device)


def open_front(context: Context, name: str, bundle: Bundle, *, max_candidates: int) -> ModelFront:
    """Load what a gateway needs to serve a model of its topology with a bundle.

    Raises:
        BundleError, SpecError: The bundle cannot be served.
        StartError: The placement does not fit it.
    """
    model = context.topology.models[name]
    layouts = placement_of(model, bundle)
    device = layouts.device
    parts = [
        PartRoute(model.replicas_of(group), *layouts.shards[group], layouts.holds(group))
        for group in layouts.parts
    ]
    if layouts.hot is not None:
        parts.append(PartRoute((), *layouts.nothing, "cached tables"))
    names = tuple(output.name for output in bundle.manifest.outputs)
    widths = tuple(output.width for output in bundle.manifest.outputs)
    return ModelFront(
        name=name,
        bundle=bundle,
        parser=Parser.for_bundle(bundle, max_candidates=max_candidates),
        parts=parts,
        fetch=layouts.fetch,
        device=None if device is None else (device[0].layout, device[1].layout),
        missing=model.missing,
        defaults=DefaultRows(bundle, layouts),
        executors=[context.ref(executor) for executor in model.executors],
        output_names=names,
        output_widths=widths,
        encoder=ScoreReplyEncoder(names, widths),
    )


def _rows(matrix: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return some rows of a matrix in C order; the matrix itself if it is that already."""
    return np.ascontiguousarray(matrix if len(rows) == len(matrix) else matrix[rows])
