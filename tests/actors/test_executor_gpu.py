"""The executor actor on a card, over the real bindings and a fake driver."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import attrs
import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from actors import executor as module
from actors.dense import ExecutorOptions, open_dense
from kernels.bundle.load import Bundle, load_bundle
from kernels.errors import DeviceLost
from kernels.executor import Staging
from kernels.gpu.executor import GpuExecutor, Model
from kernels.gpu.lanes import Blocks
from kernels.program import Argument, Bucket, Launch, Program, Target, leading_dimension
from runtime.errors import ActorDied, StartError
from runtime.service import Service
from runtime.topology import all_in_one
from tests import tiny
from tests.kernels.gpu_help import SCORE_ARGUMENTS, FakeCuda, fake_cuda, score_program
from tests.swaps import asked, build
from transport.errors import Unavailable

__all__ = ["fake_cuda"]
LAUNCH_FAILED = 719


def blocks_of(bundle: Bundle, options: ExecutorOptions) -> Blocks:
    manifest = bundle.manifest
    widths = manifest.user.width, manifest.candidate.width
    dtype = np.dtype(np.float32)
    return Blocks(options.max_rows, options.max_requests, *widths, 1, dtype)


class Sums:
    """A dense graph that adds up all that it is given, on the host."""

    n_lanes = n_outputs = 1
    sequences = None

    def __init__(self, blocks: Blocks) -> None:
        self.max_rows, self.max_requests = blocks.max_rows, blocks.max_requests
        self._staging = Staging(
            np.zeros((blocks.max_requests, blocks.user_width), np.float32),
            np.zeros((blocks.max_rows, blocks.candidate_width), np.float32),
            np.zeros(blocks.max_rows, np.int64),
        )

    def bucket(self, n_rows: int) -> int:
        return n_rows

    def staging(self, lane: int, shape: Bucket | None = None) -> Staging:
        return self._staging

    def run(self, lane: int, n_requests: int, n_rows: int) -> NDArray[np.float32]:
        staging = self._staging
        users = staging.user[staging.request_of_row[:n_rows]].sum(1, keepdims=True)
        sums: NDArray[np.float32] = users + staging.candidate[:n_rows].sum(1, keepdims=True)
        return sums

    def measure(self) -> list[tuple[int, float]]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def on_card(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Executors run ``Sums`` on the fake card, on two lanes."""

    def open_sums(
        bundle: Bundle,
        options: ExecutorOptions,
        name: str,
        device_tables: Collection[str],
        progress: Callable[[float], None],
        **_: object,
    ) -> GpuExecutor:
        blocks = blocks_of(bundle, options)

        def compile_program(bucket: Bucket, target: Target) -> Program:
            widths = blocks.user_width, blocks.candidate_width
            arguments: tuple[Argument, ...] = (
                *SCORE_ARGUMENTS,
                *map(leading_dimension, widths),
            )
            return score_program(
                bucket,
                user_width=widths[0],
                candidate_width=widths[1],
                launches=(Launch(0, "sums", (1, 1, 1), 32, arguments),),
            )

        model = Model(name="sums", blocks=blocks, compile=compile_program)
        return GpuExecutor(model, fake_cuda.builder, 2, progress=progress)

    monkeypatch.setattr(module, "open_dense", open_sums)
    return fake_cuda


async def scores_of(bundle: Path) -> list[NDArray[np.float32]]:
    """Ask for scores of many requests at once."""
    scores: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * 30

    async def ask(service: Service, number: int) -> None:
        user = {"user_id": number % 11, "history": [1, 2], "age": 20.0 + number}
        rows = [
            {"item_id": (number + k) % 17, "genre": tiny.GENRES[k % 5], "price": 0.1 * k}
            for k in range(1 + 7 * number % 40)
        ]
        scores[number] = (await service.score(user=user, candidates=rows, budget=20)).scores

    async with (
        Service.open(all_in_one(bundle, executor={"max_rows": 100})) as service,
        trio.open_nursery() as nursery,
    ):
        for number in range(len(scores)):
            nursery.start_soon(ask, service, number)
    return scores


async def test_requests_that_share_launches_get_their_own_scores(
    on_card: FakeCuda, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_card = await scores_of(tiny_bundle)
    assert on_card.launched > 0
    monkeypatch.setattr(
        module, "open_dense", lambda bundle, options, *_, **__: Sums(blocks_of(bundle, options))
    )
    for card, host in zip(on_the_card, await scores_of(tiny_bundle), strict=True):
        np.testing.assert_allclose(card, host, rtol=1e-5)


async def test_a_version_that_is_given_back_leaves_nothing_on_the_card(
    on_card: FakeCuda, tmp_path: Path
) -> None:
    old, new = build(tmp_path)
    async with Service.open(all_in_one(old, executor={"max_rows": 100})) as service:
        user, rows = asked(3)
        live = on_card.live
        before = await service.score(user=user, candidates=rows, budget=20)
        await service.deploy(new)
        after = await service.score(user=user, candidates=rows, budget=20)
        assert not np.allclose(before.scores, after.scores)
        assert on_card.live == live
        await service.deploy(old)
        again = await service.score(user=user, candidates=rows, budget=20)
        np.testing.assert_array_equal(before.scores, again.scores)
        assert on_card.live == live


@pytest.mark.parametrize("function", ["cuGraphLaunch", "cuEventSynchronize"])
async def test_a_lost_card_answers_what_is_in_flight_and_ends_the_process(
    on_card: FakeCuda,
    tiny_bundle: Path,
    function: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers: list[str] = []

    async def ask(service: Service) -> None:
        user = {"user_id": 1, "history": [1], "age": 20.0}
        rows = [{"item_id": 1, "genre": "drama", "price": 0.0}] * 90
        try:
            await service.score(user=user, candidates=rows, budget=20)
        except Unavailable as error:
            answers.append(str(error))

    async def lose() -> None:
        async with Service.open(all_in_one(tiny_bundle, executor={"max_rows": 100})) as service:
            on_card.fail(function, LAUNCH_FAILED)
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(ask, service)
            await trio.sleep_forever()

    live = on_card.live
    with pytest.raises(ActorDied) as caught, trio.fail_after(10):
        await lose()
    assert isinstance(caught.value.__cause__, DeviceLost)
    assert answers == ["the executor lost its card and is being restarted"] * 6
    assert "executor-0: its card is lost" in caplog.text
    on_card.library.fake_forgive(on_card.live - live)


async def test_cancelling_frees_nothing_under_a_running_kernel(
    on_card: FakeCuda, tiny_bundle: Path
) -> None:
    async def ask(service: Service) -> None:
        user = {"user_id": 1, "history": [1], "age": 20.0}
        rows = [{"item_id": 1, "genre": "drama", "price": 0.0}]
        with suppress(Unavailable):
            await service.score(user=user, candidates=rows, budget=20)

    released: list[int] = []

    async def let_it_end() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.1)
            released.append(on_card.live)
            on_card.hold(False)

    with trio.CancelScope() as scope:
        async with (
            trio.open_nursery() as nursery,
            Service.open(all_in_one(tiny_bundle)) as service,
        ):
            on_card.hold()
            before, launched = on_card.live, on_card.launched
            nursery.start_soon(ask, service)
            while on_card.launched == launched:  # noqa: ASYNC110 - the fake tells nobody
                await trio.sleep(0.001)
            nursery.start_soon(let_it_end)
            await trio.lowlevel.checkpoint()
            scope.cancel()
    assert released == [before]


def test_a_bundle_is_compiled_loaded_and_captured(
    fake_cuda: FakeCuda, tiny_bundle: Path, tmp_path: Path
) -> None:
    gpu = {"cache": str(tmp_path), "buckets": [64], "workers": 1}
    options = ExecutorOptions(device="auto", max_rows=128, lanes=2, gpu=gpu)
    bundle = load_bundle(tiny_bundle)
    shares: list[float] = []
    dense = open_dense(bundle, options, "ex", progress=shares.append)
    assert isinstance(dense, GpuExecutor)
    assert shares == [0.5, 1.0]
    staging = dense.staging(1)
    assert staging.user.shape == (256, bundle.manifest.user.width)
    assert staging.candidate.shape == (128, bundle.manifest.candidate.width)
    launched = fake_cuda.launched
    assert dense.run(1, 3, 100).shape == (100, 1)
    assert fake_cuda.launched > launched
    assert list(tmp_path.iterdir())
    dense.close()


def test_asking_for_a_card_that_is_not_there_says_so(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    cuda = ExecutorOptions(device="cuda")
    with pytest.raises(StartError, match=r'actor ex: device is "cuda", but .*driver.*"host" runs'):
        open_dense(bundle, cuda, "ex")


def test_auto_runs_on_the_host_and_says_why(
    tiny_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense = open_dense(load_bundle(tiny_bundle), ExecutorOptions(device="auto", max_rows=8), "ex")
    assert dense.max_rows == 8
    assert "ex: the model runs on the processor: " in caplog.text
    dense.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "threads"}, "table gpu: 'mode' must be in"),
        ({"buckets": [0]}, "table gpu: buckets: want a list of rows or of .*, each at least 1"),
        ({"buckets": [{"rows": 64}]}, "table gpu: buckets: want a list of rows or of { rows, req"),
        ({"buckets": [{"rows": 64, "requests": 0}]}, "each at least 1, got .{'rows': 64, 'requ"),
        ({"buckets": 64}, "table gpu: buckets: want a list of rows"),
        ({"precision": "fp8"}, "table gpu: 'precision' must be in"),
        ({"mapped": ["weights"]}, "table gpu: 'mapped' must be in"),
        ({"lanes": 2}, "table gpu: no option 'lanes'; there are ahead, buckets, cache"),
    ],
)
def test_a_wrong_option_is_named(
    options: dict[str, object], message: str, tiny_bundle: Path
) -> None:
    with pytest.raises(StartError, match=message):
        open_dense(load_bundle(tiny_bundle), ExecutorOptions(gpu=options), "ex")


def test_options_of_an_executor() -> None:
    with pytest.raises(ValueError, match="'device' must be in"):
        ExecutorOptions(device="gpu")
    assert attrs.asdict(ExecutorOptions())["device"] == "host"
