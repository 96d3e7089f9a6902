"""Checks and times the sequence kernels on a card.

    python3 -m tests.gpu.sequence_probe [attention] [encoder] [small]

Checks compare with float64, with ragged masks (none, one, holes) and poisoned outputs. Times are of
one graph replay after L2 was overwritten, median. The table comes last. ``small`` checks few rows
and times nothing, for compute-sanitizer.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from cuda.bindings import driver, nvrtc
from numpy.typing import NDArray

from kernels.ir.node import Encoder, Node, Op, TargetAttention
from kernels.program import H100, Pointer, Precision, Role
from kernels.sequences import encoder
from kernels.sequences import target_attention as attention
from kernels.sequences.encoder import EncoderTile
from tests.kernels import sequence_help as help_

HEADERS = pathlib.Path(__file__).parents[2] / "kernels" / "cuda"
NOWHERE = Pointer(Role.SCRATCH)
TABLE: list[str] = []
Launcher = Callable[[], None]


def note(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201


def ck(result: tuple[Any, ...]) -> Any:  # noqa: ANN401
    if int(result[0]) != 0:
        raise RuntimeError(str(result[0]))
    return result[1] if len(result) == 2 else result[1:]


def compile_text(text: str) -> tuple[bytes, str]:
    program = ck(nvrtc.nvrtcCreateProgram(text.encode(), b"sequence.cu", 0, [], []))
    options = ["--gpu-architecture=sm_90a", "--std=c++17", f"-I{HEADERS}", "--ptxas-options=-v"]
    code = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])[0]
    log = b" " * (2 + ck(nvrtc.nvrtcGetProgramLogSize(program)))
    nvrtc.nvrtcGetProgramLog(program, log)
    if int(code) != 0:
        raise RuntimeError(log.decode())
    cubin = b" " * ck(nvrtc.nvrtcGetCUBINSize(program))
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return cubin, log.decode()


FUNCTIONS: dict[str, Any] = {}


def build(texts: Sequence[str]) -> None:
    """Compile in parallel and load; every kernel is called ``sequence``."""
    texts = list(dict.fromkeys(texts))
    with concurrent.futures.ProcessPoolExecutor(16) as pool:
        done = list(pool.map(compile_text, texts))
    for text, (cubin, log) in zip(texts, done, strict=True):
        registers, spills = (re.findall(p, log) for p in (r"Used (\d+) reg", r"(\d+) bytes spill"))
        if any(int(n) for n in spills):
            note("SPILL", registers, spills)
        FUNCTIONS[text] = ck(
            driver.cuModuleGetFunction(ck(driver.cuModuleLoadData(cubin)), b"sequence")
        )


def bind(
    text: str, grid: int, block: int, shared: int, arguments: Sequence[torch.Tensor]
) -> Launcher:
    function = FUNCTIONS[text]
    size = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    ck(driver.cuFuncSetAttribute(function, size, shared))
    values = [ctypes.c_uint64(tensor.data_ptr()) for tensor in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    keep = (values, pointers, arguments)

    def launch() -> None:
        stream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
        address = ctypes.addressof(keep[1])
        ck(driver.cuLaunchKernel(function, grid, 1, 1, block, 1, 1, shared, stream, address, 0))

    return launch


_FLUSH: list[torch.Tensor] = []


def cold_us(launch: Launcher, repeats: int = 40) -> float:
    """Median time of one graph replay after L2 was overwritten."""
    if not _FLUSH:
        _FLUSH.append(torch.empty(64 * 2**20, dtype=torch.int32, device="cuda"))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        launch()
    for _ in range(3):
        graph.replay()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for before, after in events:
        _FLUSH[0].zero_()
        before.record()
        graph.replay()
        after.record()
    torch.cuda.synchronize()
    return float(statistics.median(a.elapsed_time(b) for a, b in events)) * 1e3


def card(array: NDArray[Any]) -> torch.Tensor:
    if array.dtype == np.uint16:
        array = array.view(np.int16)
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()


# ---- target attention


@attrs.frozen(eq=False)
class AttentionBatch:
    """A batch on the card, laid out as DIN's candidate block."""

    node: Node
    block: help_.Block
    inputs: list[NDArray[Any]]

    @classmethod
    def of(
        cls, node: Node, rows: int, element: str, seed: int, full: bool = False
    ) -> AttentionBatch:
        rng = np.random.default_rng(seed)
        steps, d = node.sources[1].dims
        query = (rng.standard_normal((rows, d), np.float32) * 0.3).astype(np.float16)
        keys = (rng.standard_normal((rows, steps, d), np.float32) * 0.3).astype(np.float16)
        mask = np.ones((rows, steps), bool) if full else help_.masks(rng, rows, steps)
        return cls(node, help_.Block.of([query, keys, mask], element), [query, keys, mask])

    def kernel(
        self, warps_per_row: int, precision: Precision, ahead: bool = True
    ) -> attention.AttentionKernel:
        query, keys, mask = (self.block.matrix(i) for i in range(3))
        return attention.emit_target_attention(
            attention.shape_of(self.node, precision),
            "sequence",
            query=query,
            keys=keys,
            mask=mask,
            output=help_.output(query.columns, precision),
            warps_per_row=warps_per_row,
            ahead=ahead,
        )

    def bind(
        self, kernel: attention.AttentionKernel, precision: Precision
    ) -> tuple[Launcher, torch.Tensor]:
        rows = len(self.inputs[0])
        weights, _ = attention.pack_target_attention(self.node, precision)
        launch = kernel.launch(
            0, rows, H100, counts=NOWHERE, weights=NOWHERE, request_of_row=NOWHERE
        )
        block = card(self.block.array)
        out = torch.full((rows, kernel.shape.d), -1, dtype=torch.int16, device="cuda")
        counts = card(np.array([rows, 1], np.int32))
        parts = [block.view(-1)[offset:] for offset in self.block.offsets]
        arguments = [counts, card(weights), counts, *parts, out]
        return bind(kernel.text, launch.grid[0], launch.block, launch.shared_bytes, arguments), out


def judge(
    what: str, found: torch.Tensor, batch: AttentionBatch | EncoderBatch, p: Precision
) -> None:
    expected = help_.answer(batch.node, batch.inputs)
    result = help_.floats_of(found.cpu().numpy(), p).reshape(expected.shape)
    error = np.abs(result - expected).max() / max(1.0, np.abs(expected).max())
    right = error < (3e-2 if p is Precision.BF16 else 3e-3)
    TABLE.append(f"{what}: {'ok' if right else 'WRONG'} {error:.1e}")
    note(TABLE[-1])


def attention_checks(most_rows: int) -> None:
    rng = np.random.default_rng(1)
    fp16, bf16 = Precision.FP16, Precision.BF16
    din = help_.target_attention(rng, 64, (80, 40), 100)
    plain = TargetAttention(3, Op.SIGMOID, softmax=False, masked=0.0)
    cases = [
        (din, 1, "Fp16", fp16, 37),
        (din, 1, "Fp16", fp16, 4096),
        (din, 2, "Fp16", fp16, 513),
        (din, 8, "Fp16", fp16, 1),
        (din, 8, "Fp16", fp16, 64),
        (din, 1, "Float32", bf16, 513),
        (help_.target_attention(rng, 32, (36,), 50), 2, "Fp16", fp16, 300),
        (help_.target_attention(rng, 128, (128, 64), 200), 1, "Fp16", fp16, 700),
        (help_.target_attention(rng, 128, (128, 128), 70), 4, "Float32", fp16, 70),
        (help_.target_attention(rng, 48, (64, 32), 50, plain), 4, "Fp16", fp16, 300),
    ]
    batches = [
        AttentionBatch.of(node, min(rows, most_rows), element, rows)
        for node, _, element, _, rows in cases
    ]
    kernels = [b.kernel(share, p) for b, (_, share, _, p, _) in zip(batches, cases, strict=True)]
    build([kernel.text for kernel in kernels])
    for batch, kernel, case in zip(batches, kernels, cases, strict=True):
        _, share, element, precision, _ = case
        launch, out = batch.bind(kernel, precision)
        launch()
        torch.cuda.synchronize()
        s = kernel.shape
        what = f"attention d {s.d} {s.hidden} t {s.steps} {element} {precision}"
        judge(f"{what} rows {len(out)} warps/row {share}", out, batch, precision)


def attention_times() -> None:
    din = help_.target_attention(np.random.default_rng(1), 64, (80, 40), 100)
    runs = [(64, 4, True), (64, 8, True), (512, 1, True), (512, 2, True), (512, 2, False)]
    runs += [(4096, 1, True), (4096, 1, False), (4096, 2, True)]
    batches = {
        (rows, full): AttentionBatch.of(din, rows, "Fp16", rows, full)
        for rows in (64, 512, 4096)
        for full in (False, True)
    }
    fp16 = Precision.FP16
    build([batches[rows, False].kernel(share, fp16, ahead).text for rows, share, ahead in runs])
    for rows, share, ahead in runs:
        times = []
        for full in (False, True):
            batch = batches[rows, full]
            launch, _ = batch.bind(batch.kernel(share, fp16, ahead), fp16)
            times.append(cold_us(launch))
        chosen = share == attention.choose_warps_per_row(rows, 100, H100) and ahead
        how = f"warps/row {share}{'' if ahead else ' not ahead'}"
        TABLE.append(
            f"DIN attention rows {rows:4d} {how}: ragged "
            f"{times[0]:6.1f} us, full {times[1]:6.1f} us{' <- chosen' if chosen else ''}"
        )
        note(TABLE[-1])


# ---- encoder


@attrs.frozen(eq=False)
class EncoderBatch:
    """A batch on the card."""

    node: Node
    block: help_.Block
    inputs: list[NDArray[Any]]

    @classmethod
    def of(cls, node: Node, rows: int, element: str, seed: int) -> EncoderBatch:
        steps, d = node.sources[0].dims
        rng = np.random.default_rng(seed)
        x = (rng.standard_normal((rows, steps, d), np.float32) * 0.5).astype(np.float16)
        return cls(node, help_.Block.of([x], element), [x])

    def bind(
        self, tile: EncoderTile, precision: Precision
    ) -> tuple[str, Callable[[], Launcher], torch.Tensor]:
        x = self.block.matrix(0)
        shape = encoder.shape_of(self.node, precision)
        out_matrix = help_.output(x.columns, precision)
        kernel = encoder.emit_encoder(shape, tile, "sequence", x=x, output=out_matrix)
        rows = len(self.inputs[0])
        out = torch.full((rows, x.columns), -1, dtype=torch.int16, device="cuda")

        def ready() -> Launcher:
            weights, _ = encoder.pack_encoder(self.node, precision)
            launch = kernel.launch(
                0, rows, H100, counts=NOWHERE, weights=NOWHERE, request_of_row=NOWHERE
            )
            counts = card(np.array([rows, 1], np.int32))
            block = card(self.block.array)
            arguments = [counts, card(weights), counts, block, out]
            return bind(kernel.text, launch.grid[0], launch.block, launch.shared_bytes, arguments)

        return kernel.text, ready, out


def block_node(d: int, n_heads: int, f: int, steps: int) -> Node:
    arg = Encoder(n_heads, (d / n_heads) ** -0.5, Op.LEAKY_RELU, 0.01)
    return help_.encoder(np.random.default_rng(d), d, f, steps, arg)


def encoder_checks(most_rows: int) -> None:
    bst = block_node(64, 4, 256, 64)
    fp16, bf16 = Precision.FP16, Precision.BF16
    cases = [
        (bst, 37, None, "Fp16", fp16),
        (bst, 513, None, "Fp16", fp16),
        (bst, 2048, None, "Fp16", fp16),
        (bst, 300, EncoderTile(1, 16), "Float32", fp16),
        (bst, 64, None, "Fp16", fp16),
        (bst, 1, None, "Float32", bf16),
        (block_node(128, 4, 512, 128), 140, None, "Fp16", fp16),
        (block_node(32, 4, 64, 20), 700, None, "Fp16", fp16),
        (block_node(48, 4, 128, 50), 300, None, "Fp16", fp16),
    ]
    bound = []
    for node, rows, tile, element, precision in cases:
        n = min(rows, most_rows)
        batch = EncoderBatch.of(node, n, element, rows)
        tile = tile or encoder.choose_tile(encoder.shape_of(node, precision), n, H100)
        bound.append((batch, tile, precision, *batch.bind(tile, precision)))
    build([text for *_, text, _, _ in bound])
    for batch, tile, precision, _, ready, out in bound:
        ready()()
        torch.cuda.synchronize()
        s = encoder.shape_of(batch.node, precision)
        what = f"encoder d {s.d} heads {s.n_heads} f {s.f} t {s.steps} {batch.block.element}"
        judge(f"{what} {precision} rows {len(out)} {tile}", out, batch, precision)


def encoder_times() -> None:
    bst, fp16 = block_node(64, 4, 256, 64), Precision.FP16
    # Rows: m-tiles, warps, split.
    fits = {
        64: ((1, 4, 1), (1, 8, 2), (2, 4, 2), (1, 8, 1)),
        512: ((1, 8, 1), (1, 16, 1), (2, 8, 1)),
        4096: ((1, 16, 1), (2, 8, 1)),
    }
    batches = {rows: EncoderBatch.of(bst, rows, "Fp16", rows) for rows in fits}
    runs = []
    for rows, which in fits.items():
        for m_tiles, warps, split in which:
            tile = EncoderTile(m_tiles, warps, split=split)
            runs.append((rows, tile, *batches[rows].bind(tile, fp16)))
    build([run[2] for run in runs])
    for rows, tile, _, ready, _ in runs:
        chosen = tile == encoder.choose_tile(encoder.shape_of(bst, fp16), rows, H100)
        time = cold_us(ready())
        TABLE.append(
            f"BST encoder rows {rows:4d} m-tiles {tile.m_tiles} warps {tile.warps:2d} "
            f"split {tile.split}: "
            f"{time:6.1f} us{' <- chosen' if chosen else ''}"
        )
        note(TABLE[-1])


EMPTY = '#include "ptx.cuh"\nKERNEL void sequence(int* x) { if (x == nullptr) *x = 0; }\n'


def main(what: Sequence[str]) -> None:
    zeros = torch.zeros(4, device="cuda")  # makes the context, too
    build([EMPTY])
    empty = bind(EMPTY, 132, 256, 0, [zeros])
    TABLE.append(f"empty kernel {cold_us(empty):.1f} us")
    small = "small" in what
    for name, check, times in (
        ("attention", attention_checks, attention_times),
        ("encoder", encoder_checks, encoder_times),
    ):
        if name in what:
            check(5 if small else 1 << 20)
            if not small:
                times()
    note("\n".join(["", "== table", *TABLE]))


if __name__ == "__main__":
    main(sys.argv[1:] or ["attention", "encoder"])
