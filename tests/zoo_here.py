"""A bundle's scores by plain calls, without a node: what ``tests.zoo --in-process`` asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels.bundle.executors import ExecutorName, open_executor
from kernels.bundle.load import Bundle
from kernels.features.blocks import RawRequest, SideMatrices
from kernels.features.parser import Parser
from kernels.lookup import PooledLookup, shard_layout
from transport.columns import blocks_from_columns
from transport.messages import CANDIDATE

F32: TypeAlias = NDArray[np.float32]
Columns: TypeAlias = Mapping[str, NDArray[Any]]

MOST_REQUESTS: Final = 64
"""Requests of a batch at most."""
_RECORDED_ROWS: Final = 256


class InProcess:
    """Runs parser, lookups and executor of one bundle by plain calls.

    Args:
        bundle: The bundle.
        executor: What runs it; opened here, as that takes longer than all the rest.
        rows: Rows of batches to come, for which an executor on a card has kernels of their own.
    """

    def __init__(
        self, bundle: Bundle, executor: ExecutorName = "host", rows: Sequence[int] = ()
    ) -> None:
        self.bundle = bundle
        manifest = bundle.manifest
        tables = {table.name: bundle.table(table.name) for table in manifest.tables}
        self._outputs = manifest.outputs
        self._parser = Parser.for_bundle(bundle)
        self._user = PooledLookup(tables, shard_layout(manifest.user, tables))
        self._candidate = PooledLookup(tables, shard_layout(manifest.candidate, tables))
        self.executor = open_executor(
            executor,
            bundle,
            max_rows=max(_RECORDED_ROWS, *rows) if rows else _RECORDED_ROWS,
            max_requests=MOST_REQUESTS,
            buckets=rows,
        )

    def score(self, columns: Columns, n: int) -> Mapping[str, F32]:
        """Return outputs ``[n, width]`` by name; raises the request's ``FeatureError``."""
        self.stage(columns, n)
        scores = self.executor.run(0, 1, n)
        return {
            output.name: scores[:, output.offset : output.offset + output.width]
            for output in self._outputs
        }

    def stage(self, columns: Columns, n: int) -> tuple[F32, F32]:
        """Lay out one request of ``n`` candidates; return its blocks, good until the next."""
        request = RawRequest(n, blocks_from_columns(CANDIDATE, columns, n))
        parsed = self._parser.parse([request])
        if parsed.failed:
            raise parsed.failed[0]
        staging = self.executor.staging(0)
        self._stage(self._user, parsed.user, staging.user[:1])
        self._stage(self._candidate, parsed.candidate, staging.candidate[:n])
        staging.request_of_row[:n] = 0
        return staging.user[:1], staging.candidate[:n]

    def close(self) -> None:
        """Stop serving."""
        self.executor.close()

    def _stage(self, lookup: PooledLookup, matrices: SideMatrices, block: F32) -> None:
        width = block.shape[1] - matrices.values.shape[1]
        if width:
            ids = np.ascontiguousarray(matrices.ids)
            block[:, :width] = lookup.run(ids, np.ascontiguousarray(matrices.weights))
        block[:, width:] = matrices.values
