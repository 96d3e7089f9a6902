"""Checks and times the wide linear kernels on a card, beside torch's matmul in a CUDA graph.

    python3 -m tests.gpu.wide_probe [check] [sweep N] [chain] [best]

``check`` compares with float64 over odd shapes; ``sweep`` times, for each layer and row count, the
N configs of each tile and split that the cost model likes best; ``chain`` runs the nine wide layers
of DLRM-DCNv2 as dependent launches, as the model chooses, ``best`` as the sweep found fastest.
Cold: one graph replay after L2 was overwritten, median. The last lines are the summary; with OUT
set, wide_probe.json there holds every number.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import json
import os
import pathlib
import re
import statistics
import sys
import time
from typing import Any

import attrs
import numpy as np
import torch
from cuda.bindings import driver, nvrtc

from kernels import wide
from kernels.ir.node import Op
from kernels.program import A100, H100, Launch, Pointer, Precision, Role, TensorMap

HEADERS = pathlib.Path(__file__).parents[2] / "kernels" / "cuda"
RELU = wide.activation(Op.RELU)
LINEAR = wide.activation(None)
GAIN = wide.Epilogue(
    "Gain",
    """struct Gain {
  static constexpr int N_STAGED = 0;
  const float* gain;
  DEVICE void operator()(int row, int col, float& v0, float& v1, const F32x2*) const {
    v0 *= gain[col] * (row % 3), v1 *= gain[col + 1] * (row % 3);
  }
};""",
    parameters=(("const float*", "gain"),),
)
RESULTS: dict[str, Any] = {}
BEST: dict[tuple[str, int], tuple[float, wide.WideConfig]] = {}


def note(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201
    if "OUT" in os.environ:
        pathlib.Path(os.environ["OUT"], "wide_probe.json").write_text(json.dumps(RESULTS, indent=1))


def ck(result: tuple[Any, ...]) -> Any:  # noqa: ANN401
    if int(result[0]) != 0:
        raise RuntimeError(str(result[0]))
    return result[1] if len(result) == 2 else result[1:]


def compile_text(text: str, arch: str = "sm_90a") -> tuple[bytes, str]:
    program = ck(nvrtc.nvrtcCreateProgram(text.encode(), b"wide.cu", 0, [], []))
    options = [f"--gpu-architecture={arch}", "--std=c++17", f"-I{HEADERS}", "--ptxas-options=-v"]
    code = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])[0]
    log = b" " * (2 + ck(nvrtc.nvrtcGetProgramLogSize(program)))
    nvrtc.nvrtcGetProgramLog(program, log)
    if int(code) != 0:
        raise RuntimeError(text + log.decode())
    cubin = b" " * ck(nvrtc.nvrtcGetCUBINSize(program))
    nvrtc.nvrtcGetCUBIN(program, cubin)
    return cubin, log.decode()


FUNCTIONS: dict[str, Any] = {}


def build(kernels: list[wide.WideKernel]) -> None:
    """Compile in parallel what is not yet there."""
    texts = list({k.text: None for k in kernels if k.text not in FUNCTIONS})
    if not texts:
        return
    begin = time.time()
    with concurrent.futures.ProcessPoolExecutor(16) as pool:
        done = list(pool.map(compile_text, texts))
    bad = 0
    for text, (cubin, log) in zip(texts, done, strict=True):
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", log)]
        if any(spills) or "C75" in log:
            bad += 1
            note("SPILL", spills, re.findall(r"using Tile = (.*);", text))
        module = ck(driver.cuModuleLoadData(cubin))
        function = ck(driver.cuModuleGetFunction(module, b"wide"))
        attribute = driver.CUfunction_attribute
        size = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        shared = int(re.findall(r"SHARED_BYTES == (\d+)", text)[0])
        ck(driver.cuFuncSetAttribute(function, size, shared))
        FUNCTIONS[text] = function
    note(f"built {len(texts)} modules in {time.time() - begin:.1f} s, {bad} bad")


def encode(m: TensorMap) -> Any:  # noqa: ANN401
    d = driver
    swizzle = d.CUtensorMapSwizzle(
        {0: 0, 32: 1, 64: 2, 128: 3}[m.swizzle_bytes]  # the enum's values
    )
    return ck(
        d.cuTensorMapEncodeTiled(
            d.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            m.pointer.offset,
            [d.cuuint64_t(m.columns), d.cuuint64_t(m.rows)],
            [d.cuuint64_t(m.row_bytes)],
            [d.cuuint32_t(m.box_columns), d.cuuint32_t(m.box_rows)],
            [d.cuuint32_t(1), d.cuuint32_t(1)],
            d.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            d.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            d.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    )


class Bound:
    """A launch with its arguments marshalled; pointers are absolute (offset of a null base)."""

    def __init__(self, kernel: wide.WideKernel, launch: Launch) -> None:
        self.function = FUNCTIONS[kernel.text]
        self.launch = launch
        self.keep: list[Any] = []
        addresses = []
        for a in launch.arguments:
            if isinstance(a, TensorMap):
                value = encode(a)
                self.keep.append(value)
                addresses.append(int(value.getPtr()))
                continue
            value = ctypes.c_uint64(a.offset) if isinstance(a, Pointer) else ctypes.c_int32(a)
            self.keep.append(value)
            addresses.append(ctypes.addressof(value))
        self.parameters = (ctypes.c_void_p * len(addresses))(*addresses)
        self.attributes = []
        if launch.cluster > 1:
            a = driver.CUlaunchAttribute()
            a.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            a.value.clusterDim.x, a.value.clusterDim.y, a.value.clusterDim.z = launch.cluster, 1, 1
            self.attributes.append(a)
        if launch.dependent:
            a = driver.CUlaunchAttribute()
            ids = driver.CUlaunchAttributeID
            a.id = ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            a.value.programmaticStreamSerializationAllowed = 1
            self.attributes.append(a)

    def config(self) -> Any:  # noqa: ANN401
        c = driver.CUlaunchConfig()
        c.gridDimX, c.gridDimY, c.gridDimZ = self.launch.grid
        c.blockDimX, c.blockDimY, c.blockDimZ = self.launch.block, 1, 1
        c.sharedMemBytes = self.launch.shared_bytes
        c.hStream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
        c.attrs, c.numAttrs = self.attributes, len(self.attributes)
        return c

    def __call__(self) -> None:
        ck(
            driver.cuLaunchKernelEx(
                self.config(), self.function, ctypes.addressof(self.parameters), 0
            )
        )

    def resident_clusters(self) -> int:
        return int(ck(driver.cuOccupancyMaxActiveClusters(self.function, self.config())))


def at(tensor: torch.Tensor, column: int = 0) -> Pointer:
    return Pointer(Role.SCRATCH, tensor.data_ptr() + column * tensor.element_size())


def matrix(tensor: torch.Tensor, column: int = 0) -> wide.Matrix:
    return wide.Matrix(at(tensor, column), tensor.stride(0))


def to_card(blob: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(blob).cuda()


def graph_of(calls: list[Any]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


FLUSH: list[torch.Tensor] = []


def cold_us(graph: torch.cuda.CUDAGraph, repeats: int = 30) -> float:
    if not FLUSH:
        FLUSH.append(torch.empty(64 * 2**20, dtype=torch.int32, device="cuda"))
    times = []
    for i in range(repeats + 3):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        FLUSH[0].fill_(i)
        a.record()
        graph.replay()
        b.record()
        times.append((a, b))
    torch.cuda.synchronize()
    return float(1e3 * statistics.median(a.elapsed_time(b) for a, b in times[3:]))


def warm_us(graph: torch.cuda.CUDAGraph, repeats: int = 30) -> float:
    times = []
    for _ in range(repeats + 3):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        graph.replay()
        b.record()
        times.append((a, b))
    torch.cuda.synchronize()
    return float(1e3 * statistics.median(a.elapsed_time(b) for a, b in times[3:]))


# ---- check


def random(shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape, device="cuda") * scale).to(dtype)


def expected(
    layer: wide.WideLayer,
    xs: list[torch.Tensor],
    w: torch.Tensor,
    b: torch.Tensor,
    staged: list[torch.Tensor],
    gain: torch.Tensor,
) -> torch.Tensor:
    out = []
    for j in range(layer.groups):
        x = torch.cat(
            [x[:, j * k : (j + 1) * k] for x, k in zip(xs, layer.segments, strict=True)], 1
        )
        out.append(x.double() @ w[j].double() + b[j].double())
    y = torch.cat(out, 1)
    if layer.epilogue.n_staged == 2:
        return staged[0].double() * y + staged[1].double()
    if layer.epilogue is GAIN:
        return y * gain.double() * (torch.arange(len(y), device="cuda") % 3)[:, None]
    functions = {
        "Activate<Relu>": torch.relu,
        "Activate<Sigmoid>": torch.sigmoid,
        "Activate<Tanh>": torch.tanh,
        "ActivateLeakyRelu": lambda v: torch.nn.functional.leaky_relu(v, 0.1),
        "ActivateElu": lambda v: torch.nn.functional.elu(v, 0.7),
        "Activate<Identity>": lambda v: v,
    }
    return functions[layer.epilogue.type_name](y)


def check_one(
    layer: wide.WideLayer, config: wide.WideConfig, rows: int, precision: Precision
) -> float:
    """Return the largest error, relative to the largest value; inf if a wrong place was written."""
    dtype = torch.float16 if precision is Precision.FP16 else torch.bfloat16
    g = layer.groups
    kernel = wide.emit(layer, config, "wide", precision)
    w = random((g, layer.k, layer.n), layer.k**-0.5, dtype)
    b = torch.randn((g, layer.n), device="cuda")
    blob = to_card(wide.pack(layer, w.float().cpu().numpy(), b.cpu().numpy(), precision))
    xs, inputs = [], []
    for k in layer.segments:  # inside a wider matrix of NaN
        width = -(-g * k // 8) * 8
        whole = torch.full((layer.rows, width + 24), float("nan"), device="cuda", dtype=dtype)
        whole[:, 8 : 8 + g * k] = random((layer.rows, g * k), 1.0, dtype)
        inputs.append(matrix(whole, 8))
        xs.append(whole[:, 8 : 8 + g * k])
    n = g * layer.n
    pitch = -(-n // 8) * 8 + 16
    staged = [random((layer.rows, pitch), 1.0, dtype) for _ in range(layer.epilogue.n_staged)]
    y = torch.empty((layer.rows, pitch), device="cuda", dtype=dtype)
    counts = torch.tensor([rows, 1], dtype=torch.int32, device="cuda")
    gain = torch.rand(n + 1, device="cuda")
    launch = kernel.launch(
        0,
        counts=at(counts),
        weights=at(blob),
        output=matrix(y, 8),
        inputs=tuple(inputs),
        staged=tuple(matrix(s) for s in staged),
        extra=(at(gain),) if layer.epilogue is GAIN else (),
        dependent=False,
    )
    bound = Bound(kernel, launch)
    want = expected(layer, xs, w, b, [s[:, :n] for s in staged], gain[:n])[:rows]
    worst = 0.0
    for _ in range(3):
        y.fill_(float("nan"))
        bound()
        torch.cuda.synchronize()
        got = y[:rows, 8 : 8 + n].double()
        outside = y[rows:].isnan().all() and y[:, :8].isnan().all() and y[:, 8 + n :].isnan().all()
        error = ((got - want).abs().max() / want.abs().max()).item()
        if not outside or error != error:
            return float("inf")
        worst = max(worst, error)
    return worst


def check() -> None:
    c = wide.WideConfig
    wg, mma = wide.Method.WGMMA, wide.Method.MMA
    configs = [
        c(wg, 64, 32, 5), c(wg, 64, 64, 4), c(wg, 64, 128, 3), c(wg, 128, 64, 4), c(wg, 128, 32, 5),
        c(wg, 128, 128, 4), c(wg, 128, 128, 5, max_clusters=3), c(wg, 128, 256, 3, max_clusters=5),
        c(wg, 64, 32, 5, 8), c(wg, 64, 64, 3, 4), c(wg, 64, 128, 4, 2), c(wg, 128, 32, 5, 2),
        c(wg, 128, 128, 3, 4), c(wg, 128, 64, 3, 8), c(wg, 128, 256, 4),
        c(mma, 64, 32, 6), c(mma, 64, 64, 4), c(mma, 128, 64, 4), c(mma, 128, 128, 3),
    ]  # fmt: skip
    layer = wide.WideLayer
    fp, bf = Precision.FP16, Precision.BF16
    cases = [
        (layer(64, 512, (3456,)), 64, fp),
        (layer(64, 96, (1024,), 1, RELU), 37, bf),
        (layer(520, 1000, (100, 1024, 13), 1, wide.activation(Op.SIGMOID)), 513, fp),
        (layer(300, 1031, (640,), 1, wide.activation(Op.TANH)), 300, fp),
        (layer(1, 40, (520,), 1, wide.activation(Op.LEAKY_RELU, 0.1)), 1, fp),
        (layer(200, 392, (600, 8), 1, wide.CROSS), 133, fp),
        (layer(256, 256, (512,), 8, RELU), 256, fp),
        (layer(400, 520, (640,), 1, GAIN), 390, fp),
        (layer(130, 50, (520,), 3, wide.activation(Op.ELU, 0.7)), 130, bf),
    ]
    pairs = [
        (a, config)
        for a in cases
        for config in configs
        if not (config.method is wg and config.split > a[0].k_tiles)
        and config.shared_bytes(a[0].epilogue.n_staged) <= H100.shared_bytes
    ]
    build([wide.emit(a[0], config, "wide", a[2]) for a, config in pairs])
    bad, worst = 0, {fp: 0.0, bf: 0.0}
    for (one, rows, precision), config in pairs:
        if "OUT" in os.environ:  # should it hang
            pathlib.Path(os.environ["OUT"], "at.txt").write_text(f"{one} {config}")
        error = check_one(one, config, rows, precision)
        worst[precision] = max(worst[precision], error)
        if not error < (2e-3 if precision is fp else 1.2e-2):
            bad += 1
            note("WRONG", error, one.rows, rows, one.n, one.segments, one.groups, config)
    RESULTS["check"] = {
        "cases": len(pairs),
        "bad": bad,
        "worst": {p.value: w for p, w in worst.items()},
    }
    note("check", RESULTS["check"])


# ---- times

LAYERS = {
    "dcn_v": ((3456,), 512, 1, LINEAR),
    "dcn_w": ((512,), 3456, 1, wide.CROSS),
    "top1": ((3456,), 1024, 1, RELU),
    "top2": ((1024,), 1024, 1, RELU),
    "top3": ((1024,), 512, 1, RELU),
    "bst1": ((4608,), 1024, 1, RELU),
    "mmoe1": ((640,), 4128, 1, RELU),
    "mmoe2": ((512,), 256, 8, RELU),
}
N_CHAIN = 8  # launches, each with weights of its own


def brief(c: wide.WideConfig) -> str:
    return (
        f"{c.method[0]} {c.tile_rows}x{c.tile_columns} st{c.stages} sp{c.split} "
        f"b{c.blocks_per_sm} m{c.max_clusters}"
    )


def time_layer(layer: wide.WideLayer, configs: list[wide.WideConfig]) -> list[tuple[float, str]]:
    g, n = layer.groups, layer.n * layer.groups
    x = random((layer.rows, g * layer.k), 1.0, torch.float16)
    y = torch.empty((layer.rows, n), device="cuda", dtype=torch.float16)
    staged = [random((layer.rows, n), 1.0, torch.float16) for _ in range(layer.epilogue.n_staged)]
    blobs = [
        torch.zeros(wide.packed_bytes(layer), dtype=torch.uint8, device="cuda")
        for _ in range(N_CHAIN)
    ]
    for blob in blobs:
        half = random((layer.bias_offset // 2,), layer.k**-0.5, torch.float16)
        blob[: layer.bias_offset] = half.view(torch.uint8)
    counts = torch.tensor([layer.rows, 1], dtype=torch.int32, device="cuda")
    times = []
    for config in configs:
        kernel = wide.emit(layer, config, "wide", Precision.FP16)
        bounds = [
            Bound(
                kernel,
                kernel.launch(
                    0,
                    counts=at(counts),
                    weights=at(blob),
                    output=matrix(y),
                    inputs=(matrix(x),),
                    staged=tuple(matrix(s) for s in staged),
                    dependent=i > 0,
                ),
            )
            for i, blob in enumerate(blobs)
        ]
        what = f"{brief(config)} r{bounds[0].resident_clusters()}/{config.clusters(layer)}"
        times.append((cold_us(graph_of(bounds), 20) / N_CHAIN, what))
    w = [random((g, layer.k, layer.n), layer.k**-0.5, torch.float16) for _ in range(N_CHAIN)]
    xg = x.view(layer.rows, g, layer.k).transpose(0, 1)
    calls = [(lambda v=v: torch.matmul(xg, v)) for v in w]
    calls[0]()
    times.append((cold_us(graph_of(calls), 20) / N_CHAIN, "torch"))
    return times


def estimated(layer: wide.WideLayer, config: wide.WideConfig) -> float:
    if config.method is wide.Method.MMA:
        return 0.0
    return wide.estimate_us(layer, config, H100)


def some(layer: wide.WideLayer, count: int) -> list[wide.WideConfig]:
    """Return the model's favourite, its favourites of each tile and split, and what sm_80 gets."""
    every = sorted(wide.candidates(layer, H100), key=lambda c: wide.estimate_us(layer, c, H100))
    taken = every[:1]
    seen: dict[tuple[int, int, int], int] = {}
    for config in every:
        key = (config.tile_rows, config.tile_columns, config.split)
        seen[key] = seen.get(key, 0) + 1
        slow = estimated(layer, config) > 2.3 * estimated(layer, every[0])
        if seen[key] <= count and not slow and config not in taken:
            taken.append(config)
    return [*taken, wide.choose(layer, A100)]


def sweep(count: int) -> None:
    work = []
    for name, (segments, n, groups, epilogue) in LAYERS.items():
        for rows in (64, 512, 4096):
            layer = wide.WideLayer(rows, n, segments, groups, epilogue)
            configs = some(layer, count)
            work.append((name, layer, configs))
    build([wide.emit(la, c, "wide", Precision.FP16) for _, la, cs in work for c in cs])
    for name, layer, configs in work:
        times = time_layer(layer, configs)
        model = [estimated(layer, c) for c in configs]
        best = min(times[:-1])
        fastest = configs[times.index(best)]
        key = (name, layer.rows)
        if key not in BEST or best[0] < BEST[key][0]:
            BEST[key] = (best[0], fastest)
        RESULTS[f"{name} {layer.rows}"] = [  # measured, by the model, config
            (round(t, 2), round(m, 2), what)
            for (t, what), m in sorted(zip(times, [*model, 0.0], strict=True))
        ]
        note(
            f"{name:6} {layer.rows:5} first {times[0][0]:7.2f} best {best[0]:7.2f} {best[1]:46}"
            f" torch {times[-1][0]:7.2f} {layer.flops / best[0] / 1e6:6.0f} TFLOP/s"
        )


def chain(best: bool) -> None:
    """Time x -> three cross layers -> 1024 -> 1024 -> 512, and compare with float64."""
    names = ["dcn_v", "dcn_w"] * 3 + ["top1", "top2", "top3"]
    d = 3456
    shapes = [(d, 512, LINEAR), (512, d, wide.CROSS)] * 3 + [
        (d, 1024, RELU),
        (1024, 1024, RELU),
        (1024, 512, RELU),
    ]
    lines = []
    for rows in (64, 512, 4096):
        layers = [wide.WideLayer(rows, n, (k,), 1, e) for k, n, e in shapes]
        configs = [
            BEST[name, rows][1] if best else wide.choose(la, H100)
            for name, la in zip(names, layers, strict=True)
        ]
        kernels = [
            wide.emit(la, c, "wide", Precision.FP16) for la, c in zip(layers, configs, strict=True)
        ]
        build(kernels)
        counts = torch.tensor([rows, 1], dtype=torch.int32, device="cuda")
        x0 = random((rows, d), 1.0, torch.float16)
        ws = [random((1, la.k, la.n), la.k**-0.5, torch.float16) for la in layers]
        bs = [torch.randn((1, la.n), device="cuda") * 0.1 for la in layers]
        ys = [
            torch.full((rows, la.n), float("nan"), device="cuda", dtype=torch.float16)
            for la in layers
        ]
        keep, bounds, resident = [], [], []
        x = x0
        want, crossed = x0.double(), x0.double()
        for i, (la, kernel) in enumerate(zip(layers, kernels, strict=True)):
            blob = to_card(
                wide.pack(la, ws[i].float().cpu().numpy(), bs[i].cpu().numpy(), Precision.FP16)
            )
            is_cross = la.epilogue.n_staged == 2
            before = x0 if i == 1 else ys[i - 2]
            staged = (matrix(x0), matrix(before)) if is_cross else ()
            launch = kernel.launch(
                0, counts=at(counts), weights=at(blob), output=matrix(ys[i]), inputs=(matrix(x),),
                staged=staged, dependent=i > 0,
            )  # fmt: skip
            bounds.append(Bound(kernel, launch))
            resident.append(bounds[-1].resident_clusters())
            keep.append(blob)
            v = want @ ws[i][0].double() + bs[i].double()
            if is_cross:
                crossed = x0.double() * v + crossed
                v = crossed
            want = torch.relu(v) if la.epilogue is RELU else v
            x = ys[i]
        graph = graph_of(bounds)
        bad, error = 0, 0.0
        for _ in range(20):
            for y in ys:
                y.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            one = ((ys[-1].double() - want).norm() / want.norm()).item()
            error = max(error, one)
            bad += not one < 1e-2
        cold, warm = cold_us(graph), warm_us(graph)
        serial = [attrs.evolve(b.launch, dependent=False) for b in bounds]
        plain = cold_us(graph_of([Bound(k, la) for k, la in zip(kernels, serial, strict=True)]))
        xs = [random((rows, la.k), 1.0, torch.float16) for la in layers]
        library = graph_of(
            [(lambda a=a, w=w: torch.matmul(a, w[0])) for a, w in zip(xs, ws, strict=True)]
        )
        line = (
            f"chain{' best' if best else ''} {rows:5} cold {cold:7.1f} warm {warm:7.1f}"
            f" without PDL {plain:7.1f} torch matmuls {cold_us(library):7.1f}"
            f" error {error:.1e} bad {bad}/20"
            f" {sum(la.flops for la in layers) / cold / 1e6:5.0f} TFLOP/s"
        )
        key = f"chain {rows}{' best' if best else ''}"
        RESULTS[key] = [
            line,
            [
                f"{brief(k.config)} resident {r} of {k.config.clusters(k.layer)}"
                for k, r in zip(kernels, resident, strict=True)
            ],
        ]
        lines.append(line)
        note("\n  ".join([line, *RESULTS[key][1]]))
    note("\n".join(lines))


def main() -> None:
    torch.manual_seed(1)
    torch.empty(1, device="cuda")
    words = sys.argv[1:] or ["check", "sweep", "6", "chain", "best"]
    count = int(words[words.index("sweep") + 1]) if "sweep" in words else 6
    note(torch.cuda.get_device_name(), words)
    if "check" in words:
        check()
    if "chain" in words:
        chain(best=False)
    if "sweep" in words:
        sweep(count)
    if "best" in words:
        chain(best=True)


if __name__ == "__main__":
    main()
