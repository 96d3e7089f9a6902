"""Tiny hand-made programs for tests on a card, of the kernels in ``programs.cu``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from kernels.gpu.device import Device
from kernels.gpu.executor import Model
from kernels.gpu.lanes import Blocks
from kernels.nvrtc import compile_source
from kernels.program import (
    Argument,
    Bucket,
    Launch,
    Pointer,
    Precision,
    Program,
    Role,
    Source,
    Target,
)

TEXT = Path(__file__).with_name("programs.cu").read_text(encoding="utf-8")
USER_WIDTH, CANDIDATE_WIDTH = 3, 5
INPUTS: tuple[Argument, ...] = tuple(
    Pointer(role) for role in (Role.USER, Role.CANDIDATE, Role.REQUEST_OF_ROW, Role.COUNTS)
)
SCORES = Pointer(Role.SCORES)
BLOCK = 64


@functools.cache
def cubin(arch: str) -> bytes:
    """Return the compiled kernels."""
    return compile_source(Source("programs", TEXT, arch)).image


class ReadyBuilder:
    """A builder that compiles in this process."""

    def image(self, source: Source) -> Future[bytes]:
        built: Future[bytes] = Future()
        built.set_result(cubin(source.arch))
        return built

    def close(self) -> None:
        pass


def program(bucket: Bucket, target: Target, launches: Sequence[Launch], **changes: Any) -> Program:  # noqa: ANN401 - of each field's own type
    """Return a program of some launches."""
    whole: dict[str, Any] = {
        "bucket": bucket,
        "precision": Precision.FP32,
        "input_dtype": np.dtype(np.float32),
        "user_width": USER_WIDTH,
        "candidate_width": CANDIDATE_WIDTH,
        "n_outputs": 1,
        "sources": (Source("programs", TEXT, target.arch),),
        "launches": tuple(launches),
        "weights": np.arange(1000, dtype=np.uint8),
        "scratch_bytes": 4 * bucket.rows,
    }
    return Program(**(whole | changes))


def blocks_for(rows: int) -> int:
    """Return the blocks of a grid with a thread a row."""
    return -(-rows // BLOCK)


def score_program(bucket: Bucket, target: Target) -> Program:
    """Return a program whose scores are ``sum(candidate) + user[0]``."""
    grid = (blocks_for(bucket.rows), 1, 1)
    return program(bucket, target, [Launch(0, "score", grid, BLOCK, (*INPUTS, SCORES))])


def slow_program(bucket: Bucket, target: Target, microseconds: int = 20_000) -> Program:
    """Return a program that takes its time in one block, and then scores."""
    grid = (blocks_for(bucket.rows), 1, 1)
    return program(
        bucket,
        target,
        [
            Launch(0, "linger", (1, 1, 1), 32, (microseconds,)),
            Launch(0, "score", grid, BLOCK, (*INPUTS, SCORES)),
        ],
    )


def where_program(bucket: Bucket, target: Target) -> Program:
    """Return a program whose scores are the multiprocessors that its many blocks ran on."""
    grid = (bucket.rows, 1, 1)
    return program(bucket, target, [Launch(0, "where", grid, 32, (SCORES,))])


def trap_program(bucket: Bucket, target: Target) -> Program:
    """Return a program that breaks on batches of more than 10 rows."""
    grid = (blocks_for(bucket.rows), 1, 1)
    return program(bucket, target, [Launch(0, "trap", grid, BLOCK, (*INPUTS, SCORES))])


def model(
    compile_program: Any = score_program,  # noqa: ANN401 - a Compile
    max_rows: int = 1000,
    max_requests: int = 64,
) -> Model:
    """Return a model of such programs."""
    blocks = Blocks(max_rows, max_requests, USER_WIDTH, CANDIDATE_WIDTH, 1, np.dtype(np.float32))
    return Model(name="tiny", blocks=blocks, compile=compile_program)


def arch() -> str:
    """Return what this card's kernels are compiled for."""
    return Device.open().target().arch
