from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio

from actors.redis.client import Client, open_client
from actors.redis.errors import LinkDown, RedisError, Refused
from actors.redis.keys import CHUNK, get, put
from actors.redis.server import Address, parse
from actors.redis.slots import SlotMap, slot_of, slots_of
from actors.redis.wire import ErrorReply, Replies, pack
from tests.redis_help import RedisProcess, needs_redis, redis_cluster, redis_server

TIMEOUT_S = 5.0


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisProcess]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@asynccontextmanager
async def client_of(
    url: str, *, timeout_s: float = TIMEOUT_S, password: str = ""
) -> AsyncIterator[Client]:
    client = await open_client(parse(url, password=password), timeout_s=timeout_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield client
        nursery.cancel_scope.cancel()


async def fill(client: Client, keys: list[bytes]) -> None:
    await put(client, keys, [b"<%b>" % key for key in keys])


# Values


def test_a_url_says_where_and_who() -> None:
    server = parse("rediss://al%40ce:se%3Acret@[::1]:7000,two/3", certificates="ca.pem")
    assert server.addresses == (Address("::1", 7000), Address("two", 6379))
    assert (server.user, server.password, server.database) == ("al@ce", "se:cret", 3)
    assert server.tls
    assert server.certificates == "ca.pem"
    assert str(server) == "[::1]:7000,two:6379"
    assert "secret" not in repr(server)
    assert parse("redis://:old@h", password="new").password == "new"
    assert parse("redis://h").greeting() == [pack([b"PING"])]


@pytest.mark.parametrize(
    "url",
    ["http://h", "redis://", "redis://:secret@", "redis://h:port", "redis://h/x", "redis://h?a=1"],
)
def test_what_is_no_url_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"redis|HOST|want|host") as caught:
        parse(url)
    assert "secret" not in str(caught.value)


def test_replies_are_cut_out_of_the_stream_wherever_it_breaks() -> None:
    stream = b"+OK\r\n:7\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n$1\r\nx\r\n$-1\r\n-MOVED 3 h:1\r\n"
    for cut in range(len(stream)):
        replies = Replies()
        *got, error = [*replies.feed(stream[:cut]), *replies.feed(stream[cut:])]
        assert got == [b"OK", 7, b"a\r\n", None, [b"x", None]]
        assert isinstance(error, ErrorReply)
        assert error.code == "MOVED"
    with pytest.raises(LinkDown, match="protocol"):
        Replies().feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_slots_are_those_of_the_specification() -> None:
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"foo{hash}bar") == slot_of(b"hash")
    assert slot_of(b"foo{}{bar}") != slot_of(b"bar")
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    keys = [b"a", b"x{a}y", b"{", b""]
    assert slots_of(keys).tolist() == [slot_of(key) for key in keys]


@pytest.mark.parametrize(
    "reply", [b"OK", [[0, 5]], [[0, 5, [b"h"]]], [[5, 0, [b"h", 1]]], [[0, 16384, [b"h", 1]]], 3]
)
def test_a_map_of_another_form_is_refused(reply: object) -> None:
    with pytest.raises(RedisError, match=r"h:1: cannot read"):
        SlotMap.read(reply, Address("h", 1))  # type: ignore[arg-type]


def test_a_map_without_a_host_means_who_was_asked() -> None:
    slots = SlotMap.read([[0, 5, [None, 7]], [9, 9, [b"other", 8, b"id"]]], Address("h", 1))
    assert slots.addresses == [Address("h", 7), Address("other", 8)]
    assert slots.owner[:11].tolist() == [0, 0, 0, 0, 0, 0, -1, -1, -1, 1, -1]


# One server


@needs_redis
async def test_many_keys_come_back_in_order(one: RedisProcess) -> None:
    keys = [b"order:%d" % i for i in range(2 * CHUNK + 3)]
    async with client_of(one.url) as client:
        assert not client.is_cluster
        await fill(client, keys[::2])
        rng = np.random.default_rng(1)
        some = [keys[i] for i in rng.permutation(len(keys))]
        want = [b"<%b>" % key if int(key[6:]) % 2 == 0 else None for key in some]
        assert await get(client, some) == want
        assert await get(client, []) == []


@needs_redis
async def test_what_somebody_gave_up_is_not_what_the_next_gets(one: RedisProcess) -> None:
    async with client_of(one.url) as client:
        await fill(client, [b"a", b"b"])
        with trio.CancelScope() as scope:
            scope.cancel()
            await get(client, [b"a"])
        assert scope.cancelled_caught
        assert await get(client, [b"b"]) == [b"<b>"]


@needs_redis
async def test_errors_about_a_command_are_replies(one: RedisProcess) -> None:
    async with client_of(one.url) as client:
        bad, good = await client.execute(
            [pack([b"NOSUCH", b"k"]), pack([b"SET", b"k", b"v"])], slots_of([b"k", b"k"])
        )
        assert isinstance(bad, ErrorReply)
        assert good == b"OK"
        with pytest.raises(RedisError, match=f"127.0.0.1:{one.port}.*unknown command"):
            await client.ask(b"k", b"NOSUCH", b"k")


@needs_redis
async def test_a_paused_server_is_given_up_and_found_again(one: RedisProcess) -> None:
    async with client_of(one.url, timeout_s=0.1) as client:
        await fill(client, [b"p"])
        one.cli("client", "pause", "300", "all")
        with pytest.raises(LinkDown, match=f"127.0.0.1:{one.port}: no answer within 100 ms"):
            await get(client, [b"p"])
        with pytest.raises(LinkDown, match="no answer"):
            await get(client, [b"p"])  # at once, this time
        with trio.fail_after(5):
            while True:
                try:
                    assert await get(client, [b"p"]) == [b"<p>"]
                    break
                except LinkDown:
                    await trio.sleep(0.02)


@needs_redis
async def test_a_killed_server_is_found_again(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with client_of(server.url) as client:
            await fill(client, [b"a"])
            server.kill()
            with pytest.raises(LinkDown, match=f"127.0.0.1:{server.port}: .*refused"):
                await get(client, [b"a"])
            server.start()
            with trio.fail_after(5):
                while True:
                    try:
                        assert await get(client, [b"a"]) == [None]
                        break
                    except LinkDown:
                        await trio.sleep(0.02)


@needs_redis
async def test_a_connection_lost_in_passing_is_not_noticed(one: RedisProcess) -> None:
    async with client_of(one.url) as client:
        await fill(client, [b"a"])
        one.cli("client", "kill", "type", "normal", "skipme", "yes")
        assert await get(client, [b"a"]) == [b"<a>"]


@needs_redis
async def test_only_the_right_password_gets_in(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "right") as server:
        for password in ("", "wrong"):
            with pytest.raises(Refused, match=f"127.0.0.1:{server.port}: (NOAUTH|WRONGPASS)"):
                await open_client(parse(server.url, password=password), timeout_s=TIMEOUT_S)
        async with client_of(server.url, password="right") as client:
            assert await get(client, [b"a"]) == [None]


@needs_redis
async def test_an_encrypted_connection_is_checked(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl on this machine")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    new = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-nodes", "-keyout", key, "-out", certificate, "-days", "2"]
    subprocess.run([*new, *files, *name], check=True, capture_output=True)  # noqa: ASYNC221
    with redis_server(tmp_path / "probe") as free:
        port = free.port
    tls = ["--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key]
    more = ["--tls-ca-cert-file", certificate, "--tls-auth-clients", "no"]
    with redis_server(tmp_path / "server", *tls, *more):
        server = parse(f"rediss://127.0.0.1:{port}", certificates=certificate)
        client = await open_client(server, timeout_s=TIMEOUT_S)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            keys = [b"tls:%d" % i for i in range(CHUNK + 9)]
            await fill(client, keys)
            assert await get(client, keys) == [b"<%b>" % key for key in keys]
            nursery.cancel_scope.cancel()
        with pytest.raises(Refused, match=f"127.0.0.1:{port}: .*certificate"):
            await open_client(parse(f"rediss://127.0.0.1:{port}"), timeout_s=TIMEOUT_S)
        with pytest.raises(LinkDown, match=f"127.0.0.1:{port}: "):
            await open_client(parse(f"redis://127.0.0.1:{port}"), timeout_s=TIMEOUT_S)


async def test_nobody_there_is_said_so() -> None:
    with pytest.raises(LinkDown, match=r"127.0.0.1:1: .*refused"):
        await open_client(parse("redis://127.0.0.1:1"), timeout_s=TIMEOUT_S)


@needs_redis
async def test_of_several_addresses_the_first_that_answers_is_the_server(
    one: RedisProcess,
) -> None:
    async with client_of(f"redis://127.0.0.1:1,127.0.0.1:{one.port},127.0.0.1:2") as client:
        assert client.addresses == [Address("127.0.0.1", one.port)]
        assert await get(client, [b"nothing"]) == [None]


async def test_what_is_no_redis_is_said_so() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"SSH-2.0-OpenSSH\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        with pytest.raises(LinkDown, match="does not speak"):
            await open_client(parse(f"redis://127.0.0.1:{port}"), timeout_s=TIMEOUT_S)
        nursery.cancel_scope.cancel()


# A cluster


@needs_redis
async def test_a_cluster_is_known_from_any_of_its_servers(cluster: list[RedisProcess]) -> None:
    keys = [b"key:%d" % i for i in range(300)] + [b"{tag}%d" % i for i in range(CHUNK + 5)]
    for server in cluster:
        async with client_of(f"redis://127.0.0.1:1,127.0.0.1:{server.port}") as client:
            assert client.is_cluster
            assert {each.port for each in client.addresses} == {each.port for each in cluster}
            await fill(client, keys)
            assert await get(client, keys[::-1]) == [b"<%b>" % key for key in keys[::-1]]
    assert all(int(server.cli("dbsize")) > 50 for server in cluster)


@needs_redis
async def test_what_is_no_string_is_as_missing(
    one: RedisProcess, cluster: list[RedisProcess]
) -> None:
    keys = [b"string", b"list", b"nothing", b"another"]
    for url in (one.url, cluster[0].url):
        async with client_of(url) as client:
            await fill(client, [b"string", b"another"])
            assert await client.ask(b"list", b"RPUSH", b"list", b"x") == 1
            assert await get(client, keys) == [b"<string>", None, None, b"<another>"]


@needs_redis
async def test_a_slot_on_the_move_is_followed(cluster: list[RedisProcess]) -> None:
    keys = [b"{move}%d" % i for i in range(6)]
    slot = str(slot_of(b"move"))
    async with client_of(cluster[0].url) as client:
        await fill(client, keys)
        source = next(each for each in cluster if each.cli("exists", "{move}0") == "1")
        target = next(each for each in cluster if each is not source)
        ids = source.cli("cluster", "myid"), target.cli("cluster", "myid")
        assert target.cli("cluster", "setslot", slot, "importing", ids[0]) == "OK"
        assert source.cli("cluster", "setslot", slot, "migrating", ids[1]) == "OK"
        moved = [f"{{move}}{i}" for i in range(3)]
        to = ("migrate", "127.0.0.1", str(target.port), "", "0", "1000", "keys", *moved)
        assert source.cli(*to) == "OK"
        want = [b"<%b>" % key for key in keys]
        assert await get(client, keys) == want  # by TRYAGAIN and ASK
        for i in (3, 4, 5):
            source.cli("migrate", "127.0.0.1", str(target.port), f"{{move}}{i}", "0", "1000")
        for server in (target, source):
            assert server.cli("cluster", "setslot", slot, "node", ids[1]) == "OK"
        assert await get(client, keys) == want  # by MOVED
        assert await get(client, keys) == want


@needs_redis
def test_redis_cli_agrees_on_slots(cluster: list[RedisProcess]) -> None:
    for key in ("a", "user:{7}:x", "{}", "emb:items:-12"):
        assert int(cluster[0].cli("cluster", "keyslot", key)) == slot_of(key.encode())


@needs_redis
async def test_keys_of_other_servers_come_while_one_is_away(cluster: list[RedisProcess]) -> None:
    keys = [b"away:%d" % i for i in range(60)]
    async with client_of(cluster[0].url) as client:
        await fill(client, keys)
        away = cluster[2]
        theirs = [key for key in keys if away.cli("exists", key.decode()) == "1"]
        others = [key for key in keys if key not in theirs]
        assert theirs
        away.kill()
        assert await get(client, others) == [b"<%b>" % key for key in others]
        with pytest.raises(LinkDown, match=f"127.0.0.1:{away.port}: "):
            await get(client, keys)
        away.start()
        with trio.fail_after(10):
            while True:
                try:
                    values = await get(client, keys)
                    break
                except RedisError:  # CLUSTERDOWN, for as long as it has heard of no other
                    await trio.sleep(0.05)
        assert values == [None if key in theirs else b"<%b>" % key for key in keys]
