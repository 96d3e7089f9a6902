"""One model as the gateway sees it: requests to ids, ids to the messages of a batch."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.load import Bundle
from kernels.device_tables import GatheredSide
from kernels.errors import PlacementError
from kernels.features.blocks import ParsedBatch
from kernels.features.parser import Parser
from kernels.lookup import ShardLayout, shard_layout
from kernels.placement import placement_for
from runtime.actor import Context, Ref
from runtime.errors import StartError
from runtime.topology import ModelSpec
from transport.codec import ScoreReplyEncoder
from transport.messages import Batch, LookupBatch, ScoreReply


@attrs.frozen(eq=False)
class ShardRoute:
    """What one shard is asked: its part of the ids, by the placement that all sides derive."""

    ref: Ref
    user: ShardLayout
    candidate: ShardLayout


@attrs.frozen(eq=False)
class Layouts:
    """What each place that holds a model's tables is asked, as all sides derive it.

    Attributes:
        shards: Each group's user and candidate layout, by the placement's order.
        device: The same of the executors' cards: the sides' blocks; None if no table lies there.
        device_tables: The tables that lie there.
    """

    shards: list[tuple[ShardLayout, ShardLayout]]
    device: tuple[GatheredSide, GatheredSide] | None = None
    device_tables: tuple[str, ...] = ()


def placement_of(model: ModelSpec, bundle: Bundle) -> Layouts:
    """Return what is asked of whom, by the placement of a model.

    Raises:
        StartError: The placement does not fit the model, or divides a table, which is not served.
    """
    try:
        placement = placement_for(bundle, model.n_groups, model.placement)
    except PlacementError as error:
        raise StartError(f"model {model.name}: {error}") from error
    if placement.fetched:
        raise StartError(
            f"model {model.name}: table {placement.fetched[0]!r} is divided or cached, which is "
            "not served yet"
        )
    user, candidate = bundle.manifest.user, bundle.manifest.candidate
    groups = [placement.pooled(group) for group in range(placement.n_groups)]
    device = placement.device
    return Layouts(
        [(shard_layout(user, tables), shard_layout(candidate, tables)) for tables in groups],
        (GatheredSide.of(user, device), GatheredSide.of(candidate, device)) if device else None,
        device,
    )


@attrs.frozen(eq=False)
class ModelFront:
    """The gateway's side of one version of a model.

    Attributes:
        shards: The shards that have something to look up, in the order of a batch's parts.
        device: What the executor itself is asked, as the part after these.
        output_names: Of the model's outputs; ``output_widths`` are their columns in the scores.
        encoder: Of replies to clients.
    """

    name: str
    bundle: Bundle
    parser: Parser
    shards: list[ShardRoute]
    device: tuple[ShardLayout, ShardLayout] | None
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

    def reply(self, request_id: int, scores: NDArray[np.float32]) -> ScoreReply:
        """Return the answer that carries these scores."""
        return ScoreReply(
            request_id=request_id,
            outputs=self.output_names,
            widths=self.output_widths,
            scores=scores,
        )

    def no_scores(self, request_id: int) -> ScoreReply:
        """Return the answer to a request without candidates."""
        return self.reply(request_id, np.empty((0, sum(self.output_widths)), np.float32))

    def messages(
        self,
        parsed: ParsedBatch,
        budgets_us: NDArray[np.int64],
        *,
        gateway: str,
        seq: int,
        executor: Ref,
    ) -> tuple[Batch, list[tuple[Ref, LookupBatch]]]:
        """Return what the executor and each shard are told about a batch, and whom to ask for rows.

        Args:
            parsed: The batch.
            budgets_us: int64 ``[K]``, time left of each of its requests.
            gateway: Where the executor sends scores.
            seq: The batch's number.
            executor: Where the shards send their rows; it is asked itself for what its card holds.
        """
        routes = self.shards
        if self.device is not None:
            routes = [*routes, ShardRoute(executor, *self.device)]
        batch = Batch(
            gateway=gateway,
            seq=seq,
            model=self.name,
            version=self.version,
            n_parts=len(routes),
            n_rows=parsed.n_rows,
            budgets_us=budgets_us,
            user_values=parsed.user.values,
            candidate_values=parsed.candidate.values,
        )
        patience_us = int(budgets_us.max())
        lookups = [
            (
                route.ref,
                LookupBatch(
                    gateway=gateway,
                    seq=seq,
                    model=self.name,
                    version=self.version,
                    executor=executor.name,
                    part=part,
                    budget_us=patience_us,
                    user_ids=_rows(parsed.user.ids, route.user.id_rows),
                    user_weights=_rows(parsed.user.weights, route.user.weight_rows),
                    candidate_ids=_rows(parsed.candidate.ids, route.candidate.id_rows),
                    candidate_weights=_rows(parsed.candidate.weights, route.candidate.weight_rows),
                ),
            )
            for part, route in enumerate(routes)
        ]
        return batch, lookups


def open_front(context: Context, name: str, bundle: Bundle, *, max_candidates: int) -> ModelFront:
    """Load what a gateway needs to serve a model of its topology with a bundle.

    Raises:
        BundleError, SpecError: The bundle cannot be served.
        StartError: The placement does not fit it.
    """
    model = context.topology.models[name]
    placement = placement_of(model, bundle)
    device = placement.device
    names = tuple(output.name for output in bundle.manifest.outputs)
    widths = tuple(output.width for output in bundle.manifest.outputs)
    return ModelFront(
        name=name,
        bundle=bundle,
        parser=Parser.for_bundle(bundle, max_candidates=max_candidates),
        shards=[
            ShardRoute(context.ref(shard), user, candidate)
            for shard, (user, candidate) in zip(model.shards, placement.shards, strict=False)
            if user.width or candidate.width
        ],
        device=None if device is None else (device[0].layout, device[1].layout),
        executors=[context.ref(executor) for executor in model.executors],
        output_names=names,
        output_widths=widths,
        encoder=ScoreReplyEncoder(names, widths),
    )


def _rows(matrix: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return some rows of a matrix in C order; the matrix itself if it is that already."""
    return np.ascontiguousarray(matrix if len(rows) == len(matrix) else matrix[rows])
