from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
import trio
import zmq
from trio.testing import MockClock

from actors.update_routes import updater_of
from actors.updater import Updater
from kernels.bundle.load import load_bundle
from kernels.placement import CachedTable, Piece, Placement, write_placement
from runtime.errors import ActorDied, StartError
from runtime.host import Host
from runtime.topology import UPDATER, ActorSpec, NodeSpec
from tests.actors.update_help import running, topology, update
from transport.codec import Packet, decode, encode
from transport.errors import InvalidRequest
from transport.messages import ErrorReply, Message, ModelsRequest, Ping, Pong
from transport.sockets import DealerSocket, open_context
from transport.updates import UpdateReply, UpdateRequest

ALL = ("users", "items", "genres")


def run(test: Callable[[], Awaitable[None]]) -> None:
    # Disks are waited for in threads, during which the clock must not jump ahead.
    trio.run(test, clock=MockClock(autojump_threshold=0.05))


def test_an_update_is_applied_by_those_who_have_the_rows(tiny_bundle: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(topology(tiny_bundle, tmp_path)) as cluster:
            for number, table in enumerate(ALL, start=1):
                reply = await cluster.update(update(table, [1, 3], float(number)))
                assert reply.number == number
            assert (await cluster.wait_applied(3)).behind == ()
            for number, table in enumerate(ALL, start=1):
                (home,) = (name for name, shard in cluster.shards.items() if table in shard.tables)
                rows = cluster.rows(home, table, [0, 1, 2, 3])
                before = load_bundle(tiny_bundle).table(table)
                np.testing.assert_array_equal(rows[[1, 3]], np.float32(number))
                np.testing.assert_array_equal(rows[[0, 2]], before[[0, 2]])

    run(main)


@pytest.mark.parametrize(
    ("bad", "field", "problem"),
    [
        (update("films", [1]), "table", "has no table 'films'; there are genres, items, users"),
        (update("items", [17]), "keys", "row 17 is outside a table of 17 rows"),
        (update("items", [-1]), "keys", "row -1 is outside"),
        (update("items", [1], model="huge"), "model", "no model 'huge' here; there are tiny"),
        (
            update("items", [1], rows=np.zeros((1, 5), np.float32)),
            "rows",
            "rows of 5 numbers; table items has 6",
        ),
    ],
)
def test_what_cannot_be_applied_is_refused(
    tiny_bundle: Path, tmp_path: Path, bad: UpdateRequest, field: str, problem: str
) -> None:
    async def main() -> None:
        async with running(topology(tiny_bundle, tmp_path)) as cluster:
            with pytest.raises(InvalidRequest, match=problem) as refused:
                await cluster.update(bad)
            assert refused.value.field == field

    run(main)


def test_nan_is_taken(tiny_bundle: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(topology(tiny_bundle, tmp_path, n_groups=1)) as cluster:
            await cluster.update(update("items", [2], float("nan")))
            await cluster.wait_applied(1)
            assert np.isnan(cluster.rows("shard-0", "items", [2])).all()

    run(main)


def test_a_source_goes_on_where_it_stood(tiny_bundle: Path, tmp_path: Path) -> None:
    async def main() -> None:
        what = topology(tiny_bundle, tmp_path, n_groups=1)
        for _ in range(2):
            async with running(what) as cluster:
                for position in (1, 2, 3, 2):
                    reply = await cluster.update(
                        update("items", [1], float(position), source="day", position=position)
                    )
                assert (reply.number, reply.position) == (3, 3)
                await cluster.wait_applied(3)
                assert (cluster.rows("shard-0", "items", [1]) == 3.0).all()

    run(main)


def test_after_a_restart_of_all_there_is_what_was_acknowledged(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        what = topology(tiny_bundle, tmp_path, n_groups=2, replicas=2)
        async with running(what, without=("shard-0", "shard-1")) as cluster:
            for number in range(1, 41):
                await cluster.update(update(ALL[number % 3], [number % 5], float(number)))
        async with running(what) as cluster:
            reply = await cluster.update(update("items", [9], 99.0))
            assert reply.number == 41
            await cluster.wait_applied(41)
            for shard in cluster.shards.values():
                for table in shard.tables:
                    rows = cluster.rows(shard.context.name, table, list(range(5)))
                    want = [
                        max(n for n in range(1, 41) if ALL[n % 3] == table and n % 5 == k)
                        for k in range(5)
                    ]
                    np.testing.assert_array_equal(
                        rows, np.array(want, np.float32)[:, None] + 0 * rows
                    )

    run(main)


def test_a_shard_that_dies_comes_back_and_is_fed_on(tiny_bundle: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(topology(tiny_bundle, tmp_path, n_groups=1)) as cluster:
            for number in range(1, 31):
                await cluster.update(update("items", [number % 7], float(number)))
                if number % 10 == 5:
                    cluster.shards["shard-0"].dies.set()
            await cluster.wait_applied(30)
            rows = cluster.rows("shard-0", "items", list(range(7)))
            np.testing.assert_array_equal(rows[:, 0], [28, 29, 30, 24, 25, 26, 27])

    run(main)


def test_one_that_was_away_for_too_long_takes_over_what_a_peer_has(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async def main() -> None:
        what = topology(tiny_bundle, tmp_path, n_groups=1, replicas=2, updater={"keep_bytes": 4000})
        async with running(what, without=("shard-1",)) as cluster:
            for number in range(1, 60):
                await cluster.update(update("items", [number % 7], float(number)))
            await cluster.until(lambda progress: progress["log_bytes"] <= 4000)
            assert (await cluster.progress())["applied"] == 0  # shard-1 may still be waited for
            cluster.deaf.clear()
            await cluster.wait_applied(59)
            await cluster.until(lambda progress: progress["replicas"]["shard-1"]["applied"] == 59)
            assert (await cluster.stats("shard-1"))["seeded"] == 1
            assert (await cluster.stats("updater"))["behind"] == 1
            for shard in cluster.shards:
                rows = cluster.rows(shard, "items", list(range(7)))
                np.testing.assert_array_equal(rows[:, 0], [56, 57, 58, 59, 53, 54, 55])
            await cluster.update(update("items", [0], 60.0))
            await cluster.wait_applied(60)
            assert (cluster.rows("shard-1", "items", [0]) == 60.0).all()
        async with running(what) as cluster:  # and finds it again
            assert (await cluster.wait_applied(60)).behind == ()
            rows = cluster.rows("shard-1", "items", list(range(7)))
            np.testing.assert_array_equal(rows[:, 0], [60, 57, 58, 59, 53, 54, 55])

    run(main)


def test_one_without_a_peer_is_told_as_behind(tiny_bundle: Path, tmp_path: Path) -> None:
    async def main() -> None:
        what = topology(tiny_bundle, tmp_path, n_groups=2, updater={"keep_bytes": 4000})
        async with running(what, without=("shard-0",)) as cluster:
            for number in range(1, 80):
                await cluster.update(update(ALL[number % 3], [number % 5], float(number)))
            await cluster.until(lambda progress: progress["log_bytes"] <= 4000)
            cluster.deaf.clear()
            reply = await cluster.wait_applied(79)
            assert reply.behind == ("shard-0",)
            progress = (await cluster.progress())["replicas"]["shard-0"]
            assert "no replica of its group has it" in progress["problem"]

    run(main)


def test_executors_hear_of_changes_in_tables_that_they_cache(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    placement = Placement(
        groups=(
            (Piece("users", 0, 1),),
            (Piece("items", 0, 1), Piece("genres", 0, 1)),
        ),
        cached=(CachedTable("items", 1 << 20),),
    )
    file = tmp_path / "placement.toml"
    write_placement(placement, file)

    async def main() -> None:
        async with running(topology(tiny_bundle, tmp_path, placement=file)) as cluster:
            await cluster.update(update("genres", [1], 1.0))
            await cluster.update(update("items", [4, 2], 1.0))
            await cluster.wait_applied(2)
            (news,) = cluster.told
            assert (news.model, news.table, news.keys.tolist()) == ("tiny", "items", [4, 2])

    run(main)


def test_tables_on_the_card_take_no_updates(tiny_bundle: Path, tmp_path: Path) -> None:
    placement = Placement(
        groups=((Piece("users", 0, 1),), (Piece("genres", 0, 1),)), device=("items",)
    )
    file = tmp_path / "placement.toml"
    write_placement(placement, file)

    async def main() -> None:
        async with running(topology(tiny_bundle, tmp_path, placement=file)) as cluster:
            with pytest.raises(InvalidRequest, match="device tables are not supported"):
                await cluster.update(update("items", [1], 1.0))

    run(main)


def test_a_model_has_one_updater(tiny_bundle: Path, tmp_path: Path) -> None:
    what = topology(tiny_bundle, tmp_path)
    second = NodeSpec(name="more", actors=(ActorSpec(name="second", class_name=UPDATER),))
    both = attrs.evolve(what, nodes=(*what.nodes, second))
    with pytest.raises(StartError, match="updater and second are both its updater"):
        updater_of(both, "tiny")
    assert updater_of(what, "tiny") == "updater"
    assert updater_of(attrs.evolve(what, nodes=what.nodes[1:]), "tiny") is None


def test_tables_in_redis_have_no_updater(tiny_bundle: Path, tmp_path: Path) -> None:
    what = topology(tiny_bundle, tmp_path, n_groups=1)
    redis = ActorSpec(name="shard-0", class_name="actors.redis.shard.RedisShard")
    nodes = tuple(
        NodeSpec(name="shard-0", actors=(redis,)) if node.name == "shard-0" else node
        for node in what.nodes
    )
    host = Host(attrs.evolve(what, nodes=nodes), {"updater": Updater})

    with pytest.raises(ActorDied, match="tables of shard-0 lie in Redis"):
        run(host.run)


def test_publishers_are_heard_and_answered(tiny_bundle: Path, tmp_path: Path) -> None:
    async def main() -> None:
        address, published = f"ipc://{tmp_path}/a", f"ipc://{tmp_path}/b"
        what = topology(tiny_bundle, tmp_path, updater={"listen": address, "subscribe": published})
        async with (
            running(what) as cluster,
            open_context() as context,
            DealerSocket(context) as socket,
        ):
            socket.connect(address)
            await socket.send(encode(Packet("", 0, update("items", [1], 5.0, request_id=7))))
            await socket.send(encode(Packet("", 0, Ping(request_id=8))))
            await socket.send([b"x"])
            await socket.send(encode(Packet("", 0, ModelsRequest(request_id=9))))
            answers: list[Message] = []
            while len(answers) < 4:
                answers += [decode(frames).message for frames in await socket.receive_batch(9)]
            by_id = {getattr(answer, "request_id", None): answer for answer in answers}
            assert isinstance(by_id[7], UpdateReply)
            assert isinstance(by_id[8], Pong)
            assert "a publisher cannot send ModelsRequest" in str(by_id[9])
            assert isinstance(by_id[0], ErrorReply)
            publisher: zmq.Socket[bytes] = context.socket(zmq.PUB)
            publisher.bind(published)
            position = 0
            while not (await cluster.stats("updater")).get("missed"):  # it may join late
                position += 1 if position < 20 else 2
                heard = update("users", [3], 9.0, source="feed", position=position)
                publisher.send_multipart([bytes(f) for f in encode(Packet("", 0, heard))])
                publisher.send_multipart([b"TB"])
                await trio.sleep(0.02)
            publisher.close(0)
            await cluster.wait_applied(2)
            home = next(name for name, s in cluster.shards.items() if "users" in s.tables)
            assert (cluster.rows(home, "users", [3]) == 9.0).all()
            assert (await cluster.stats("updater"))["unheard"] > 0

    run(main)
