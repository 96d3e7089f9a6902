"""NVIDIA's Multi-Process Service: a daemon through which processes run on one card together.

Without it, processes take turns; with it, their kernels run side by side, each on a share of the
multiprocessors if that is asked for. Daemon and clients find each other by a folder, which each
process must know before it first calls CUDA: ``environment`` says how. The daemon here is our own,
apart from one that the machine may run for others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from kernels.errors import CudaError

_NAME: Final = "nvidia-cuda-mps-control"
# Where drivers put it that containers get from their host, which may not be on the PATH.
_FOLDERS: Final = ("/usr/bin", "/usr/local/nvidia/bin", "/usr/local/bin", "/usr/local/cuda/bin")
# It answers in milliseconds; this is for one that hangs.
_ANSWER_S: Final = 10.0
# Time that clients have to end once the daemon was asked to; they should have ended before.
_QUIT_S: Final = 5
_POLL_S: Final = 0.05
_OWN: Final = 0o700


def find_control(folders: Sequence[str] = _FOLDERS) -> Path:
    """Return the program that starts the daemon and talks to it: of the PATH, else of a folder.

    Raises:
        CudaError: It is not there; says where it was looked for.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *folders))
    found = shutil.which(_NAME, path=path)
    if found is None:
        raise CudaError(f"MPS: there is no {_NAME} on the PATH or in {', '.join(folders)}")
    return Path(found)


@attrs.define(eq=False)
class Mps:
    """The daemon of one folder.

    Args:
        folder: For its sockets and logs; made if need be. A short path: sockets have 107 bytes.
        control: The program, see ``find_control``.
        patience_s: Time that the daemon has to start, and to end.
    """

    folder: Path
    control: Path = attrs.field(factory=find_control)
    patience_s: float = 10.0

    def environment(self, percentage: int | None = None) -> Mapping[str, str]:
        """Return the variables that make a process a client.

        Args:
            percentage: Of the multiprocessors that it may use, 1 to 100; None for all.
        """
        variables = {
            "CUDA_MPS_PIPE_DIRECTORY": str(self.folder / "pipe"),
            "CUDA_MPS_LOG_DIRECTORY": str(self.folder / "log"),
        }
        if percentage is not None:
            variables["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(percentage)
        return variables

    def start(self) -> None:
        """Start the daemon, unless it runs: one that was left behind serves as well.

        Raises:
            CudaError: It does not start; says what it printed.
        """
        for name in ("pipe", "log"):
            (self.folder / name).mkdir(mode=_OWN, parents=True, exist_ok=True)
        if self.is_running():
            return
        ran = self._run("-d")
        if ran.returncode or not self._wait(running=True, within_s=self.patience_s):
            said = " ".join(ran.stdout.split()) or f"it ended with code {ran.returncode}"
            raise CudaError(f"MPS: the daemon does not start ({said}); see {self.folder / 'log'}")

    def is_running(self) -> bool:
        """Return whether the daemon answers."""
        return self._run(command="get_server_list").returncode == 0

    def stop(self) -> None:
        """Stop the daemon, and its clients if there still are any. Can be called twice.

        Raises:
            CudaError: It does not stop.
        """
        if not self.is_running():
            return
        self._run(command=f"quit -t {_QUIT_S}")
        if not self._wait(running=False, within_s=self.patience_s):
            raise CudaError(f"MPS: the daemon does not stop; see {self.folder / 'log'}")

    def _wait(self, *, running: bool, within_s: float) -> bool:
        """Wait until the daemon runs, or does not; return whether that came to be in time."""
        deadline = time.monotonic() + within_s
        while self.is_running() is not running:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _run(self, *arguments: str, command: str = "") -> subprocess.CompletedProcess[str]:
        """Run the program; ``command`` is what it is to tell the daemon.

        What it prints goes through a file: the daemon inherits it, and would keep a pipe open.
        """
        output = self.folder / "log" / "control.out"
        with output.open("w+", encoding="utf-8", errors="replace") as sink:
            try:
                ran = subprocess.run(
                    [str(self.control), *arguments],
                    env={**os.environ, **self.environment()},
                    input=f"{command}\n" if command else None,
                    stdin=None if command else subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=_ANSWER_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise CudaError(f"MPS: {self.control} does not answer") from error
            except OSError as error:
                raise CudaError(f"MPS: {self.control} cannot be run: {error}") from error
            sink.seek(0)
            return subprocess.CompletedProcess(ran.args, ran.returncode, sink.read(), "")
