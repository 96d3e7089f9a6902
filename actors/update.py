"""Publishes new rows to a running cluster: ``python -m actors.update CLUSTER.toml --model M ...``.

Rows come from a file, from standard input, or from a ZeroMQ publisher, and go to the model's
updater. What is printed as acknowledged is durable there and will be applied; ``--wait`` waits
until every replica has applied it.

A file is known by its path, size and time. The updater remembers how far it came, so the same
command goes on where one that was stopped had come, and a file that was taken whole is not taken
again. Standard input is only known by a ``--source`` that is given.

Exit codes: 0, all was acknowledged (and applied, with ``--wait``); 1, it was not, and a line on
standard error says why; 2, the cluster file or the command is wrong.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

import attrs
import numpy as np
import trio

from actors.update_files import FileError, Format, Rows, kind_of, read_batches
from actors.update_routes import updater_of
from runtime import cluster_file
from runtime.errors import StartError
from runtime.reports import EXIT_FAILED, EXIT_OK, EXIT_START, Console
from runtime.topology import Topology
from transport.codec import decode
from transport.errors import AddressError, RemoteProtocolError, TransportError
from transport.publisher import Publisher
from transport.sockets import SubscriberSocket, open_context
from transport.updates import UpdateReply, UpdateRequest

_POLL_S: Final = 0.1
_TELL_S: Final = 5.0
_RECEIVE_MOST: Final = 64


@attrs.define(eq=False)
class _Tally:
    """What was acknowledged."""

    console: Console
    n_updates: int = 0
    n_rows: int = 0
    n_nan: int = 0
    number: int = 0
    told_at: float = -math.inf

    def count(self, request: UpdateRequest, reply: UpdateReply) -> None:
        """Count an update's answer; say every few seconds how far it is."""
        self.n_updates += 1
        self.n_rows += len(request.keys)
        self.n_nan += int(np.isnan(request.rows).any(axis=1).sum())
        self.number = reply.number
        now = trio.current_time()
        if self.told_at == -math.inf:
            self.told_at = now
        elif now - self.told_at > _TELL_S:
            self.told_at = now
            self.console.say(self.line(reply))

    def line(self, reply: UpdateReply) -> str:
        """Return in one line what was acknowledged and how far it was applied."""
        behind = f"; behind, and left out: {', '.join(reply.behind)}" if reply.behind else ""
        return (
            f"acknowledged: {self.n_updates} updates of {self.n_rows} rows, up to number "
            f"{self.number}; applied everywhere up to number {reply.applied}{behind}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.table is None and arguments.subscribe is None:
        parser.error("--table: which one?")
    console = Console()
    try:
        topology = cluster_file.load(arguments.cluster)
        address = arguments.address or _address(topology, arguments.model)
        with ExitStack() as stack:
            file = None if arguments.subscribe else _open(arguments.file, stack)
            return trio.run(_publish, address, arguments, file, console)
    except (StartError, AddressError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_START
    except (FileError, TransportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped; what was acknowledged stays so\n")
        return EXIT_FAILED


async def _publish(
    address: str, arguments: argparse.Namespace, file: BinaryIO | None, console: Console
) -> int:
    tally = _Tally(console)
    async with Publisher.connect(
        address, on_reply=tally.count, patience_s=arguments.patience
    ) as publisher:
        try:
            if file is None:
                await _relay(publisher, arguments)
            else:
                await _send_file(publisher, arguments, file, console)
            await publisher.drain()
        except BaseException:
            console.say(f"acknowledged: {tally.n_updates} updates of {tally.n_rows} rows")
            raise
        if tally.n_nan:
            console.say(f"{tally.n_nan} rows hold NaN, which is taken as it is")
        return await _conclude(publisher, arguments, tally)


async def _conclude(publisher: Publisher, arguments: argparse.Namespace, tally: _Tally) -> int:
    """Say how far all was applied; wait for it if that is wanted."""
    reply = await publisher.ask(arguments.model)
    number = tally.number or reply.number
    with trio.move_on_after(arguments.wait):
        while reply.applied < number:
            await trio.sleep(_POLL_S)
            reply = await publisher.ask(arguments.model)
    tally.number = number
    tally.console.say(tally.line(reply))
    if arguments.wait and reply.applied < number:
        sys.stderr.write(f"error: not applied everywhere within {arguments.wait:g} s\n")
        return EXIT_FAILED
    return EXIT_OK


async def _send_file(
    publisher: Publisher, arguments: argparse.Namespace, file: BinaryIO, console: Console
) -> None:
    source: str = arguments.source or _source_of(arguments)
    taken = 0
    if source:
        taken = (await publisher.ask(arguments.model, source)).position
        if taken:
            console.say(f"{source}: goes on after {taken} updates that were acknowledged before")
    kind: Format = arguments.format or kind_of(Path(arguments.file))
    name = "standard input" if arguments.file == "-" else arguments.file
    batches = read_batches(file, name, kind, arguments.batch)
    position = 0
    while (
        rows := await trio.to_thread.run_sync(_next, batches, abandon_on_cancel=True)
    ) is not None:
        position += 1
        if position > taken:
            await publisher.publish(
                UpdateRequest(
                    request_id=0,
                    model=arguments.model,
                    table=arguments.table,
                    source=source,
                    position=position if source else 0,
                    keys=rows.keys,
                    rows=rows.rows,
                )
            )


async def _relay(publisher: Publisher, arguments: argparse.Namespace) -> None:
    """Pass on what a publisher says of the model, and of the table if one is given; for ever.

    Positions are left out: what a subscriber misses cannot be had again.
    """
    async with open_context() as context, SubscriberSocket(context) as socket:
        socket.connect(arguments.subscribe)
        while True:
            for frames in await socket.receive_batch(_RECEIVE_MOST):
                try:
                    message = decode(frames).message
                except RemoteProtocolError as error:
                    sys.stderr.write(f"{arguments.subscribe}: passed over: {error}\n")
                    continue
                if not isinstance(message, UpdateRequest) or message.model != arguments.model:
                    continue
                if arguments.table in (None, message.table):
                    await publisher.publish(attrs.evolve(message, source="", position=0))


def _source_of(arguments: argparse.Namespace) -> str:
    """Return what a file is known by, with the size of its updates; nothing for standard input."""
    if arguments.file == "-":
        return ""
    path = Path(arguments.file).resolve()
    status = path.stat()
    identity = f"{status.st_size}-{status.st_mtime_ns}-{arguments.batch}-{arguments.table}"
    return f"{str(path)[-150:]}:{identity}"[-255:]


def _next(batches: Iterator[Rows]) -> Rows | None:
    return next(batches, None)


def _open(file: str, stack: ExitStack) -> BinaryIO:
    if file == "-":
        return sys.stdin.buffer
    try:
        return stack.enter_context(Path(file).open("rb"))
    except OSError as error:
        raise StartError(f"--file: {error}") from error


def _address(topology: Topology, model: str) -> str:
    if model not in topology.models:
        known = ", ".join(sorted(topology.models)) or "none"
        raise StartError(f"--model: no model {model!r}; there are {known}")
    name = updater_of(topology, model)
    if name is None:
        raise StartError(f"model {model}: the cluster has no updater for it")
    actors = topology.node_of(name).actors
    listen = next(actor.options.get("listen") for actor in actors if actor.name == name)
    if not isinstance(listen, str):
        raise StartError(f"actor {name}: has no option `listen`, so it cannot be reached")
    return re.sub(r"^tcp://(\*|0\.0\.0\.0):", "tcp://127.0.0.1:", listen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m actors.update",
        description="Change rows of a table of a running cluster.",
    )
    parser.add_argument("cluster", type=Path, metavar="CLUSTER.toml", help="the cluster file")
    parser.add_argument("--model", required=True, metavar="M", help="the model's name in it")
    parser.add_argument("--table", metavar="T", help="the table; --subscribe needs none")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--file", default="-", metavar="FILE", help="npz or JSON lines; - for standard input"
    )
    what.add_argument(
        "--subscribe", metavar="ADDRESS", help="a PUB socket that publishes updates, until Ctrl-C"
    )
    parser.add_argument(
        "--format", choices=("npz", "jsonl"), help="of the file, if its name does not tell"
    )
    parser.add_argument(
        "--batch", type=_at_least_one, default=2000, metavar="N", help="rows of an update (2000)"
    )
    parser.add_argument(
        "--source", default="", metavar="NAME", help="what the updater knows the input by"
    )
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="until all replicas applied it"
    )
    parser.add_argument(
        "--address", help="where the updater is reached, if not as the cluster file says"
    )
    parser.add_argument(
        "--patience", type=float, default=30.0, metavar="SECONDS", help="with the updater (30)"
    )
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("want at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
