"""Every kernel emitted for the six models and the zoo compiles for each card, without a spill.

Needs NVRTC, and no card. Equal sources are compiled once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
import pytest

from kernels.bench.graphs import graph_of
from kernels.bench.models import MODELS
from kernels.bundle.load import load_bundle
from kernels.compiler import Options, compile_graph
from kernels.ir.node import Graph
from kernels.ir.onnx_import import import_dense
from kernels.nvrtc import Builder, Cache
from kernels.plan.shape import TileShape
from kernels.program import A100, B200, H100, Bucket, Precision, Program, Target
from tests import zoo

HOST_ONLY = "deepctr_DIEN_GRU.legacy"
# What a multiprocessor has for a block, on each card.
MOST_THREADS = 1024
REGISTERS = 65_536

needs_zoo = pytest.mark.skipif(not zoo.ZOO.exists(), reason="no zoo beside the checkout")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    pytest.importorskip("cuda.bindings.nvrtc")
    with Builder(Cache(tmp_path_factory.mktemp("cubins")), n_workers=2, niceness=0) as made:
        yield made


@functools.cache
def peer(name: str) -> Graph:
    model = MODELS[name]
    return graph_of(model, model.draw_parameters(0))


def assert_sound(builder: Builder, programs: Iterable[tuple[Program, Target]]) -> None:
    """Compile what programs consist of; each launch must be one that the card takes."""
    held = list(programs)
    cubins = iter(builder.build_all([source for made, _ in held for source in made.sources]))
    found: dict[str, tuple[str, ...]] = {}
    for made, target in held:
        of_source = [next(cubins) for _ in made.sources]
        found |= {cubin.name: cubin.problems for cubin in of_source if cubin.problems}
        for launch in made.launches:
            kernels = {each.entry: each for each in of_source[launch.source].resources}
            static = kernels[launch.entry].shared_bytes
            assert launch.shared_bytes + static <= target.shared_bytes
            assert launch.block <= MOST_THREADS
            assert kernels[launch.entry].registers * launch.block <= REGISTERS
            assert launch.grid[0] % launch.cluster == 0
    assert found == {}


@pytest.mark.parametrize("rows", [64, 512, 4096])
@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_a_model_compile_for_an_h100(name: str, rows: int, builder: Builder) -> None:
    made = compile_graph(peer(name), Bucket(rows), H100)
    assert_sound(builder, [(made, H100)])


@pytest.mark.parametrize("target", [A100, B200], ids=lambda target: target.arch)
@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_a_model_compile_for_other_cards(
    name: str, target: Target, builder: Builder
) -> None:
    buckets = [Bucket(64), Bucket(4096)] if name != "DLRMDCNv2" else [Bucket(512)]
    made = [compile_graph(peer(name), bucket, target) for bucket in buckets]
    assert_sound(builder, [(each, target) for each in made])


@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_a_model_compile_for_other_storage(name: str, builder: Builder) -> None:
    halves = Options(Precision.BF16), Options(input_dtype="float16")
    made = [(compile_graph(peer(name), Bucket(64), H100, each), H100) for each in halves]
    assert_sound(builder, made)


@pytest.mark.parametrize("target", [H100, A100, B200], ids=lambda target: target.arch)
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32])
@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_floats_compile(
    name: str, precision: Precision, target: Target, builder: Builder
) -> None:
    if (name, target) == ("BST", A100):
        pytest.skip("a row's steps in floats are more than its shared memory")
    buckets = [Bucket(64), Bucket(4096)] if target is H100 else [Bucket(512)]
    made = [compile_graph(peer(name), bucket, target, Options(precision)) for bucket in buckets]
    assert_sound(builder, [(each, target) for each in made])


@pytest.mark.parametrize("name", ["DLRM", "MMoE"])
@pytest.mark.parametrize(
    "shape",
    [
        TileShape(16, 1),
        TileShape(16, 4),
        TileShape(32, 1),
        TileShape(32, 2),
        TileShape(64, 2),
        TileShape(8, 1),
    ],
    ids=str,
)
def test_kernels_of_every_cut_compile(name: str, shape: TileShape, builder: Builder) -> None:
    made = compile_graph(peer(name), Bucket(512), H100, Options(tile=shape))
    assert_sound(builder, [(made, H100)])


def zoo_names() -> list[Any]:
    if not zoo.ZOO.exists():
        return []
    return [model.name for model in zoo.models(zoo.ZOO) if model.name != HOST_ONLY]


# On an H100 all of them; the other cards share them out, as a minute of every run is enough.
@needs_zoo
@pytest.mark.parametrize("name", zoo_names())
def test_kernels_of_the_zoo_compile(
    name: str, builder: Builder, zoo_built: Callable[[str], zoo.Built]
) -> None:
    built = zoo_built(name)
    graph = import_dense(load_bundle(built.path).dense_model(), name)
    bucket = Bucket(512, 16)
    other = (A100, B200)[zoo_names().index(name) % 2]
    assert_sound(builder, [(compile_graph(graph, bucket, each), each) for each in (H100, other)])


def test_two_compilations_give_the_same(builder: Builder) -> None:
    for name in ("DLRM", "DIN", "MMoE"):
        one, other = (compile_graph(peer(name), Bucket(64), H100) for _ in range(2))
        assert one.sources == other.sources
        assert one.launches == other.launches
        assert one.weights.tobytes() == other.weights.tobytes()
        assert attrs.evolve(one, weights=other.weights).facts == other.facts
