"""What an executor runs its dense graph on, as its options say: this machine's cores, or a card."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from attrs.validators import and_, deep_iterable, ge, in_, instance_of, optional

from actors.options import read_options
from kernels import _cuda
from kernels.bundle.load import Bundle
from kernels.errors import DeviceLost, GraphError, KernelsError
from kernels.fp8 import Scales
from kernels.gpu.device import Isolation
from kernels.gpu.executor import GpuExecutor
from kernels.gpu.model import open_gpu
from kernels.host import HostExecutor
from kernels.program import Bucket, Precision
from runtime.errors import StartError

log = logging.getLogger(__name__)

HOST: Final = "host"
CUDA: Final = "cuda"
AUTO: Final = "auto"


def _check_buckets(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, list) and all(map(_is_bucket, value))):
        raise ValueError(
            f"{attribute.name}: want a list of rows or of {{ rows, requests }}, perhaps with a "
            f"length, each at least 1, got {value!r}"
        )


def _is_bucket(value: object) -> bool:
    if isinstance(value, dict):
        named = value.keys() - {"length"} == {"rows", "requests"}
        return named and all(type(each) is int and each > 0 for each in value.values())
    return type(value) is int and value > 0


@attrs.frozen(kw_only=True)
class GpuOptions:
    """The table ``gpu`` of an executor's options.

    Attributes:
        index: Which card.
        mode: How lanes are kept apart: ``streams``, ``contexts``, or ``green`` for multiprocessors
            of their own.
        precision: ``fp16``, ``bf16``, ``tf32`` or ``fp32``: how values are stored between steps
            and multiplied, as ``kernels.program.Precision`` says.
        fp8: ``row`` or ``tensor``, for large Linears over floats of eight bits (e4m3), of which
            each row or tensor of weights has a scale; on Hopper, with ``fp16`` or ``bf16``.
        input_dtype: ``float32``, or ``float16`` for half the bytes to the card, where features
            stay within 65,504.
        buckets: The buckets to compile: rows, or ``{ rows = 512, requests = 16 }``, where a launch
            of so many rows has so few requests (users). With ``length = 20``, too, of sequences of
            so many steps, where they may be shorter than they are. Without it, powers of two at
            first, and then as many that suit the traffic, in rows, requests and length.
        ahead: Whether all are compiled before the executor is ready, or only the largest.
        mapped: What kernels reach in the host's memory instead of in copies: ``inputs``,
            ``scores``.
        hot_rows: Where hot rows of cached tables are kept: on the ``card``, or in the ``host``'s
            memory, pooled by the processor.
        cache: Folder of compiled kernels; without it, one of the user's.
        workers: Processes that compile at once; without it, one for every second core, up to 8.
    """

    index: int = attrs.field(default=0, validator=[instance_of(int), ge(0)])
    mode: str = attrs.field(default="streams", validator=in_(tuple(map(str, Isolation))))
    precision: str = attrs.field(default="fp16", validator=in_(tuple(map(str, Precision))))
    fp8: str | None = attrs.field(default=None, validator=optional(in_(tuple(map(str, Scales)))))
    input_dtype: str = attrs.field(default="float32", validator=in_(("float32", "float16")))
    buckets: list[int | dict[str, int]] | None = attrs.field(default=None, validator=_check_buckets)
    ahead: bool = attrs.field(default=True, validator=instance_of(bool))
    mapped: list[str] = attrs.field(
        factory=list, validator=deep_iterable(in_(("inputs", "scores")))
    )
    hot_rows: str = attrs.field(default="card", validator=in_(("card", "host")))
    cache: str | None = attrs.field(default=None, validator=optional(instance_of(str)))
    workers: int | None = attrs.field(
        default=None, validator=optional(and_(instance_of(int), ge(1)))
    )

    def given_buckets(self) -> list[int | Bucket] | None:
        """Return ``buckets`` as the executor takes them."""
        if self.buckets is None:
            return None
        return [Bucket(**each) if isinstance(each, dict) else each for each in self.buckets]


@attrs.frozen(kw_only=True)
class ExecutorOptions:
    """The options of an executor in a topology file.

    Attributes:
        device: ``host``, ``cuda``, or ``auto``: a card if there is one that can run the model, and
            else the host, which is logged.
        gpu: Options of a card, see ``GpuOptions``.
        lanes: Launches under way at once; on a host, threads that run the dense graph.
        max_rows: Rows of the largest bucket. Larger requests are split and joined.
        max_requests: Requests that share a launch at most.
        linger_us: How long an idle lane may wait for company, in microseconds.
        backlog_rows: High-water mark: above it, requests are answered ``overloaded`` at once.
    """

    device: str = attrs.field(default=HOST, validator=in_((HOST, CUDA, AUTO)))
    gpu: dict[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    lanes: int = attrs.field(default=1, validator=[instance_of(int), ge(1)])
    max_rows: int = attrs.field(default=2048, validator=[instance_of(int), ge(1)])
    max_requests: int = attrs.field(default=256, validator=[instance_of(int), ge(1)])
    linger_us: int = attrs.field(default=0, validator=[instance_of(int), ge(0)])
    backlog_rows: int = attrs.field(default=1 << 18, validator=[instance_of(int), ge(1)])


def open_dense(
    bundle: Bundle,
    options: ExecutorOptions,
    name: str,
    device_tables: Collection[str] = (),
    progress: Callable[[float], None] = lambda share: None,
    hot_tables: Mapping[str, int] | None = None,
) -> HostExecutor | GpuExecutor:
    """Open a bundle's dense graph as the options say. Compiles, and takes seconds.

    Args:
        bundle: The model's.
        options: The actor's.
        name: The actor's, for messages.
        device_tables: Tables that the model's placement puts on the card: kernels gather and pool
            their rows, of ids that come straight from the gateway.
        progress: Told what share of what is compiled is ready, 0 to 1, in this thread or another.
        hot_tables: Cached tables, and how many bytes of each may lie on the card, if there is one.

    Raises:
        StartError: An option is wrong, or a card was asked for and cannot run this; says why.
        BundleError: The graph does not load.
    """
    gpu = read_options(GpuOptions, f"{name}, table gpu", options.gpu)
    if device_tables and options.device != CUDA:
        raise StartError(
            f"actor {name}: the placement puts tables on the device, which needs "
            f'device = "{CUDA}", not "{options.device}"'
        )
    if options.device != HOST:
        problem: str | None = _cuda.available()
        if problem is None:
            try:
                return open_gpu(
                    bundle,
                    options.lanes,
                    max_rows=options.max_rows,
                    max_requests=options.max_requests,
                    mode=gpu.mode,
                    precision=gpu.precision,
                    fp8=gpu.fp8,
                    input_dtype=gpu.input_dtype,
                    device_tables=device_tables,
                    hot_tables=hot_tables if gpu.hot_rows == "card" else None,
                    buckets=gpu.given_buckets(),
                    ahead=gpu.ahead,
                    mapped=gpu.mapped,
                    cache=Path(gpu.cache) if gpu.cache is not None else None,
                    n_workers=gpu.workers,
                    device=gpu.index,
                    progress=progress,
                )
            except GraphError as error:
                problem = str(error)
            except DeviceLost:
                raise
            except (KernelsError, ValueError) as error:  # such as a bucket beyond max_rows
                raise StartError(f"actor {name}: {error}") from error
        if options.device == CUDA:
            raise StartError(
                f'actor {name}: device is "cuda", but {problem}; '
                'device = "host" runs the model on the processor'
            )
        log.warning("%s: the model runs on the processor: %s", name, problem)
    return HostExecutor(
        bundle,
        n_lanes=options.lanes,
        max_rows=options.max_rows,
        max_requests=options.max_requests,
    )
