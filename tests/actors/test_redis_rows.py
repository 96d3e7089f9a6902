from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest
import trio

from actors.redis import __main__ as command
from actors.redis import load as loading
from actors.redis.client import Client, open_client
from actors.redis.errors import BadRow
from actors.redis.load import compare, fill, read_about
from actors.redis.rows import About, RedisTable, prefix_of
from actors.redis.server import parse
from actors.redis.wire import Reply
from kernels.bundle.load import Bundle, load_bundle
from kernels.bundle.manifest import Table
from kernels.store.rows import ROW_TYPES, encode_rows
from tests.redis_help import RedisProcess, needs_redis, redis_server


def table(**changes: object) -> RedisTable:
    of = Table(name="t", rows=9, dim=3, dtype="fp32", file="t.npy")
    of = attrs.evolve(of, **changes)  # type: ignore[arg-type]
    return RedisTable(table=of, prefix=b"p%{x}:", default=bytes(of.row_bytes))


def test_keys_are_decimal_with_a_sign() -> None:
    keys = np.array([0, -5, 2**63 - 1, -(2**63)])
    assert table().keys_of(keys) == [
        b"p%{x}:0",
        b"p%{x}:-5",
        b"p%{x}:9223372036854775807",
        b"p%{x}:-9223372036854775808",
    ]
    assert table().about == b"p%{x}:about"


def test_a_prefix_names_table_model_and_version() -> None:
    names = {"table": "items", "model": "ctr", "version": "0123456789abcdef"}
    assert prefix_of("{table}:", **names) == b"items:"
    assert prefix_of("e/{model}/{version}/{table}/", **names) == b"e/ctr/0123456789ab/items/"


@pytest.mark.parametrize("template", ["", "x:", "{table}{other}", "{table", "{table}{}", "{0}"])
def test_a_prefix_that_cannot_tell_tables_apart_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        prefix_of(template, table="t", model="m", version="v")


@pytest.mark.parametrize("dtype", ROW_TYPES)
def test_rows_of_each_dtype_come_back(dtype: str) -> None:
    of = table(dtype=dtype)
    numbers = np.array([[1, -2, 0.5], [0, 0, 0], [127, 1, -127]], np.float32)
    encoded = encode_rows(numbers, dtype)  # type: ignore[arg-type]
    rows = of.rows_of(np.arange(3), [row.tobytes() for row in encoded])
    assert rows == encoded.tobytes()


def test_a_missing_key_is_the_default_row_where_there_are_keys() -> None:
    of = attrs.evolve(table(keyed=True), default=b"d" * 12)
    assert of.rows_of(np.array([4, 5]), [None, b"r" * 12]) == b"d" * 12 + b"r" * 12
    assert not np.frombuffer(table(keyed=True).rows_of(np.array([4]), [None]), np.float32).any()


def test_a_missing_row_and_one_of_another_size_are_named() -> None:
    with pytest.raises(BadRow, match=r"key 'p%\{x\}:5': missing, or no string; table t has 9 rows"):
        table().rows_of(np.array([4, 5]), [b"r" * 12, None])
    for keyed in (False, True):
        with pytest.raises(BadRow, match=r"key 'p%\{x\}:5': 11 bytes; .*\(fp32, dim 3\) have 12"):
            table(keyed=keyed).rows_of(np.array([4, 5]), [b"r" * 12, b"r" * 11])


def test_what_a_table_says_about_itself_comes_back() -> None:
    about = About(dtype="int8", dim=3, keyed=True, rows=9, version="v", done=2)
    words = about.words()
    assert About.read(list(words), b"k") == about
    assert About.read([], b"k") is None
    replies: list[Reply] = [b"OK", None, [b"dtype"], list(words[2:]), [*words[:4], b"dim", b"x"]]
    for bad in replies:
        with pytest.raises(BadRow, match="'k'"):
            About.read(bad, b"k")


# With a server


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def items_of(bundle: Bundle, prefix: bytes) -> RedisTable:
    return RedisTable.of(bundle, "items", prefix)


class Stopped(Exception):
    """In place of what ends a load."""


@needs_redis
async def test_a_load_that_was_stopped_goes_on(
    one: RedisProcess, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "STEP", 5)
    bundle = load_bundle(tiny_bundle)
    items = items_of(bundle, b"stopped:")
    seen: list[int] = []

    def stop_at_ten(done: int) -> None:
        seen.append(done)
        if done == 10:
            raise Stopped

    async def body(client: Client) -> None:
        with pytest.raises(Stopped):
            await fill(client, items, bundle, stop_at_ten)
        about = await read_about(client, items)
        assert about is not None
        assert (about.done, about.whole) == (10, False)
        assert "10 of 17" in (about.problem(items.table) or "")
        assert await fill(client, items, bundle, seen.append) == 10
        assert seen == [5, 10, 15, 17]
        about = await read_about(client, items)
        assert about is not None
        assert about.problem(items.table) is None
        assert (await compare(client, items, bundle, lambda _: None)).is_same
        # A later version is loaded over it, and meanwhile the table can be used.
        later = attrs.evolve(bundle, manifest=attrs.evolve(bundle.manifest, version="1" * 64))
        with pytest.raises(Stopped):
            await fill(client, items, later, stop_at_ten)
        about = await read_about(client, items)
        assert about is not None
        assert (about.done, about.version, about.whole) == (10, "1" * 64, True)

    await with_client(one.url, body)


@needs_redis
async def test_another_table_is_not_written_over(one: RedisProcess, tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    items = items_of(bundle, b"other:")

    async def body(client: Client) -> None:
        await fill(client, items, bundle, lambda _: None)
        wide = attrs.evolve(items, table=attrs.evolve(items.table, dim=8))
        with pytest.raises(BadRow, match="'other:about': Redis has dense rows of 6 fp32"):
            await fill(client, wide, bundle, lambda _: None)

    await with_client(one.url, body)


async def with_client(url: str, body: Callable[[Client], Awaitable[None]]) -> None:
    client = await open_client(parse(url), timeout_s=5.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        await body(client)
        nursery.cancel_scope.cancel()


@needs_redis
def test_the_command_loads_and_checks(
    tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis_server(tmp_path, "--requirepass", "right") as server:
        key = tmp_path / "key"
        key.write_text("right\n")
        to = [str(tiny_bundle), "--url", server.url, "--password-file", str(key)]
        assert command.main(["load", *to, "--prefix", "{model}/{table}/"]) == 0
        assert "17 rows of 24 bytes under bundle/" in capsys.readouterr().out
        assert command.main(["load", *to, "--prefix", "{model}/{table}/"]) == 0
        assert "0 of them set now" in capsys.readouterr().out
        check = ["check", *to, "--prefix", "{model}/{table}/"]
        assert command.main(check) == 0
        assert "17 rows compared: 0 missing, 0 different" in capsys.readouterr().out
        items = "items"
        cli = ("--pass", "right", "--no-auth-warning")
        server.cli(*cli, "set", f"bundle/{items}/3", "x")
        server.cli(*cli, "del", f"bundle/{items}/4")
        assert command.main([*check, "--table", items]) == 1
        found = capsys.readouterr().out
        assert f"1 missing, 1 different, first bundle/{items}/3" in found
        assert command.main(["load", *to, "--prefix", "{model}/{table}/", "--again"]) == 0
        assert command.main(check) == 0
        capsys.readouterr()
        for wrong, words in (
            (["--table", "nosuch"], "no table 'nosuch'"),
            (["--prefix", "x"], "want {table} in it"),
            (["--password-file", str(tmp_path / "nowhere")], "nowhere"),
            (["--url", "redis://127.0.0.1:1"], "127.0.0.1:1: "),
        ):
            assert command.main(["load", *to, *wrong]) == 2
            assert words in capsys.readouterr().err
