"""A process that compiles, and its parent's side of it.

It compiles one source after the other, and ends as soon as the other end of its socket is closed,
in the middle of a compilation too: so no worker outlives its parent, however that ended.

Messages over the socket (``multiprocessing.connection``, bytes only): a request is one, JSON with
``name``, ``text``, ``arch``; an answer is a JSON head, and if that has no ``error``, the cubin.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import attrs

from kernels.errors import CacheError, CompileError, CompilerMissing, KernelsError
from kernels.nvrtc.cache import Cache
from kernels.nvrtc.compile import Cubin, compile_unit, unit_of
from kernels.program import Source

_ERRORS: Final = {error.__name__: error for error in (CacheError, CompilerMissing, KernelsError)}
_ROOT: Final = Path(__file__).parents[2]
_COMMAND: Final = "from kernels.nvrtc.worker import main; main()"


@attrs.frozen
class Settings:
    """What a worker is told at its start.

    Attributes:
        cache: Where cubins are kept, if anywhere.
        niceness: Added to the process's, so that compiling yields to serving.
    """

    cache: Cache | None
    niceness: int

    def to_json(self) -> str:
        """Return what ``from_json`` reads."""
        cache = self.cache
        held = None if cache is None else [str(cache.folder.absolute()), cache.limit_bytes]
        return json.dumps({"cache": held, "niceness": self.niceness})

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what ``to_json`` gave."""
        found = json.loads(text)
        held = found["cache"]
        return cls(None if held is None else Cache(Path(held[0]), held[1]), found["niceness"])


def _answer(source: Source, cache: Cache | None) -> tuple[dict[str, Any], bytes]:
    """Compile, or find in the cache; return an answer's head and image."""
    try:
        unit = unit_of(source)
        cubin = compile_unit(unit) if cache is None else cache.get_or_compile(unit)
    except CompileError as error:
        problem = {"error": "CompileError", "name": error.name, "problem": error.problem}
        return problem | {"log": error.log}, b""
    except KernelsError as error:
        return {"error": type(error).__name__, "problem": str(error)}, b""
    return {"log": cubin.log, "seconds": cubin.seconds}, cubin.image


def _receive(connection: Connection, requests: queue.SimpleQueue[bytes]) -> None:
    """Pass requests on; end the process at once when the parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            requests.put(connection.recv_bytes())
    os._exit(0)


def main() -> None:
    """Compile until the parent closes its end; does not return. Arguments are the command's."""
    descriptor, settings = int(sys.argv[1]), Settings.from_json(sys.argv[2])
    os.nice(settings.niceness)
    connection = Connection(descriptor)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, requests), daemon=True).start()
    while True:
        head, image = _answer(Source(**json.loads(requests.get())), settings.cache)
        connection.send_bytes(json.dumps(head).encode())
        if "error" not in head:
            connection.send_bytes(image)


class WorkerProcess:
    """A worker, seen from its parent. ``kill`` may be called from any thread, the rest from one.

    Raises:
        KernelsError: No process can be started.
    """

    def __init__(self, settings: Settings) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                self._process = _start(theirs.fileno(), settings)
            except OSError as error:
                raise KernelsError(f"no process can be started to compile: {error}") from error
            self._connection = Connection(ours.detach())

    def cubin(self, source: Source, limit_s: float) -> Cubin:
        """Have a source compiled.

        Raises:
            KernelsError: What the worker met: a CompileError, CompilerMissing or CacheError.
            EOFError, OSError: The worker is gone.
            TimeoutError: There is no answer yet.
        """
        connection = self._connection
        connection.send_bytes(json.dumps(attrs.asdict(source)).encode())
        if not connection.poll(limit_s):
            raise TimeoutError(f"no answer in {limit_s} s")
        head = json.loads(connection.recv_bytes())
        if "error" not in head:
            image = connection.recv_bytes()
            return Cubin(source.name, source.arch, image, head["log"], head["seconds"])
        if head["error"] == CompileError.__name__:
            raise CompileError(head["name"], head["problem"], source.text, head["log"])
        raise _ERRORS[head["error"]](head["problem"])

    def kill(self) -> None:
        """Kill it, if it still runs; does not wait."""
        self._process.kill()

    def close(self) -> int:
        """Kill it, wait for its end, and return its exit status; a signal's number is negative."""
        self._process.kill()
        self._connection.close()
        return self._process.wait()


def _start(descriptor: int, settings: Settings) -> subprocess.Popen[bytes]:
    path = [str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _COMMAND, str(descriptor), settings.to_json()],
        stdin=subprocess.DEVNULL,
        stdout=2,  # a compiler that prints must not print into its user's output
        pass_fds=[descriptor],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        start_new_session=True,  # the terminal's Ctrl-C is for the parent to handle
    )
