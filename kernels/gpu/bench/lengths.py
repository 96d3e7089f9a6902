"""What shorter sequences save: batches of one size in buckets of fewer and fewer steps."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from kernels.errors import KernelsError
from kernels.gpu.bench.subject import Subject
from kernels.gpu.executor import Builder, GpuExecutor
from kernels.ir.reference import evaluate
from kernels.program import Bucket, Precision

ROWS: Final = (64, 512)
_N_REPEATS: Final = 50
_SPREAD: Final = 0.3
# Largest error of a score against float64, of the whole length; by the largest, if that is above 1.
_TOLERANCES: Final = {Precision.FP16: 2e-3, Precision.BF16: 2e-2, Precision.FP32: 1e-5}


def measure_lengths(
    subject: Subject, builder: Builder, rows: tuple[int, ...] = ROWS
) -> list[dict[str, Any]]:
    """Time batches whose longest sequence has all steps, a half, a quarter and an eighth of them.

    From staged batch to scores on the host, copies among it; the median. A model whose sequences
    all need their whole length has nothing to measure.

    Args:
        subject: What is served.
        builder: Belongs to this from here on.
        rows: Of the batches, which have one request each.

    Raises:
        KernelsError: Scores are off from those of the whole length.
    """
    sequences = subject.found.shortened
    if sequences is None:
        builder.close()
        return []
    most = sequences.most
    lengths = sorted({most, *(max(most // part, 1) for part in (2, 4, 8))}, reverse=True)
    given = [Bucket(n_rows, 1, length) for n_rows in rows for length in lengths]
    executor = GpuExecutor(subject.model(max(rows), 1), builder, buckets=given)
    try:
        return [
            {"rows": n_rows, **_timed(subject, executor, n_rows, length)}
            for n_rows in rows
            for length in lengths
        ]
    finally:
        executor.close()


def _timed(subject: Subject, executor: GpuExecutor, n_rows: int, length: int) -> dict[str, Any]:
    sequences = subject.found.shortened
    assert sequences is not None
    blocks = _batch(subject, n_rows, length)
    staging = executor.staging(0, Bucket(n_rows, 1, length))
    for side, staged in (("user", staging.user), ("candidate", staging.candidate)):
        if side in blocks:
            kept = sequences.kept(side, blocks[side].shape[1], staging.length)
            parts = [blocks[side][:, start:stop] for start, stop in kept]
            staged[: len(blocks[side])] = np.concatenate(parts, 1)
    staging.request_of_row[:n_rows] = 0
    scores = executor.run(0, 1, n_rows)
    want = evaluate(subject.graph, blocks, np.zeros(n_rows, int))
    error = float(np.abs(scores - want).max() / max(1.0, np.abs(want).max()))
    if not error <= _TOLERANCES[subject.options.precision]:
        raise KernelsError(f"{subject.name}: {length} steps: scores are off by {error:.2g}")
    times = []
    for _ in range(_N_REPEATS):
        start = time.perf_counter()
        executor.run(0, 1, n_rows)
        times.append(time.perf_counter() - start)
    item = staging.user.dtype.itemsize
    n_columns = staging.user.shape[1] + n_rows * staging.candidate.shape[1]
    return {
        "steps": staging.length,
        "staged_kb": n_columns * item / 1e3,
        "run_us": float(np.median(times)) * 1e6,
    }


def _batch(subject: Subject, n_rows: int, length: int) -> dict[str, np.ndarray]:
    """Draw blocks whose sequences have so many steps, by their masks."""
    random = np.random.default_rng(length)
    sequences = subject.found.shortened
    assert sequences is not None
    blocks = {}
    for name, node in subject.graph.inputs.items():
        n = n_rows if name == "candidate" else 1
        drawn = random.standard_normal((n, node.width)) * _SPREAD
        blocks[name] = drawn.astype(np.float16).astype(np.float32)
    for mark in sequences.marks:
        part = mark.stretch
        alive = np.arange(part.most) < length
        if part.last:
            alive = alive[::-1]
        mask = np.where(alive, 1 - mark.dead, mark.dead)
        blocks[part.input][:, part.start : part.stop] = mask
    return blocks
