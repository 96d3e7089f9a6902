"""``python -m actors.redis load|check``: fill Redis with a bundle's tables, and compare them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from actors.redis.client import Client, open_client
from actors.redis.errors import RedisError
from actors.redis.load import compare, fill
from actors.redis.rows import PREFIX, RedisTable, prefix_of
from actors.redis.server import Server, parse
from kernels.bundle.load import Bundle, load_bundle
from kernels.bundle.manifest import Table
from kernels.errors import KernelsError
from runtime.errors import StartError
from runtime.supervisor import sole


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 1 (rows differ) or 2 (an error)."""
    options = _parser().parse_args(arguments)
    try:
        status: int = trio.run(_run, options)
    except (KernelsError, RedisError, StartError, OSError, ValueError, ExceptionGroup) as error:
        cause = sole(error)
        if isinstance(cause, ExceptionGroup):
            raise
        sys.stderr.write(f"actors.redis {options.command}: {' '.join(str(cause).split())}\n")
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="actors.redis", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {
        "load": "set the rows of tables; goes on where it was stopped",
        "check": "compare the rows of tables with a bundle's",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("bundle", type=Path, metavar="BUNDLE/")
        command.add_argument(
            "--table", action="append", metavar="NAME", help="default: all; may be repeated"
        )
        command.add_argument("--url", required=True, metavar="redis://HOST:PORT")
        command.add_argument("--password-file", type=Path, metavar="FILE")
        command.add_argument("--certificates", metavar="FILE", help="to trust, with rediss://")
        command.add_argument(
            "--prefix", default=PREFIX, help="of keys, with {table}, {model}, {version}"
        )
        command.add_argument(
            "--model", metavar="NAME", help="what the cluster calls it; default: the folder's name"
        )
        if name == "load":
            command.add_argument(
                "--again", action="store_true", help="set rows that are there, too"
            )
        command.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS")
    return parser


async def _run(options: argparse.Namespace) -> int:
    server = _server(options)
    bundle = load_bundle(options.bundle)
    tables = [_redis_table(options, bundle, table) for table in _tables(options, bundle)]
    client = await open_client(server, timeout_s=options.timeout)
    status = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        for table in tables:
            if options.command == "load":
                await _load(client, table, bundle, again=options.again)
            elif not await _check(client, table, bundle):
                status = 1
        nursery.cancel_scope.cancel()
    return status


def _server(options: argparse.Namespace) -> Server:
    password = ""
    if options.password_file is not None:
        password = options.password_file.read_text(encoding="utf-8").strip()
    return parse(options.url, password=password, certificates=options.certificates)


def _tables(options: argparse.Namespace, bundle: Bundle) -> list[Table]:
    tables = {table.name: table for table in bundle.manifest.tables}
    for name in options.table or ():
        if name not in tables:
            raise ValueError(f"no table {name!r} in {bundle.path}; there are {', '.join(tables)}")
    return [tables[name] for name in options.table or tables]


def _redis_table(options: argparse.Namespace, bundle: Bundle, table: Table) -> RedisTable:
    model = options.model or bundle.path.resolve().name
    version = bundle.manifest.version
    prefix = prefix_of(options.prefix, table=table.name, model=model, version=version)
    return RedisTable.of(bundle, table.name, prefix)


async def _load(client: Client, table: RedisTable, bundle: Bundle, *, again: bool) -> None:
    n, name = table.table.rows, table.table.name
    began = trio.current_time()

    def progress(done: int) -> None:
        _show(f"{name}: {done} of {n} rows")

    before = await fill(client, table, bundle, progress, again=again)
    spent_s = trio.current_time() - began
    _show("")
    sys.stdout.write(
        f"{name}: {n} rows of {table.table.row_bytes} bytes under {table.prefix.decode()}*, "
        f"{n - before} of them set now in {spent_s:.1f} s\n"
    )


async def _check(client: Client, table: RedisTable, bundle: Bundle) -> bool:
    n, name = table.table.rows, table.table.name
    found = await compare(client, table, bundle, lambda done: _show(f"{name}: {done} of {n} rows"))
    _show("")
    first = f", first {found.first}" if found.first else ""
    sys.stdout.write(
        f"{name}: {found.rows} rows compared: {found.missing} missing, "
        f"{found.different} different{first}\n"
    )
    return found.is_same


def _show(text: str) -> None:
    """Write progress over itself, where somebody looks."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
