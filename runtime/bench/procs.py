"""Server processes: started, watched for CPU time, stopped; the clusters that a run needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs

from kernels.store.scale import memory_mb

_STOP_S: Final = 15.0


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python with a command line; terminate it at the end, and kill it if it stays.

    What it prints goes to standard error: standard output is the benchmark's own line.
    """
    # In a session of its own, so that Ctrl-C reaches it through us, once.
    process = subprocess.Popen(
        [sys.executable, *command], stdout=sys.stderr, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@attrs.frozen
class Process:
    """A process as the system lists it.

    Attributes:
        cpu_s: Seconds of CPU so far, all its threads together.
    """

    pid: int
    parent: int
    cpu_s: float
    command: str


def list_processes() -> list[Process]:
    """Return all processes: from ``/proc``, or from ``ps`` where there is none."""
    if Path("/proc/self/stat").exists():
        return [p for entry in os.scandir("/proc") if (p := _from_proc(entry)) is not None]
    out = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,time=,command="], capture_output=True, check=True, text=True
    ).stdout
    fields = (line.split(None, 3) for line in out.splitlines())
    return [
        Process(int(pid), int(parent), _clock_seconds(cpu), rest[0] if rest else "")
        for pid, parent, cpu, *rest in fields
    ]


def _from_proc(entry: os.DirEntry[str]) -> Process | None:
    if not entry.name.isdecimal():
        return None
    try:
        stat = Path(entry.path, "stat").read_text()
        command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return None  # it ended while we looked
    # The name, in parentheses, may hold anything; the fields after it are numbers (proc(5)).
    fields = stat.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return Process(int(entry.name), int(fields[1]), ticks / os.sysconf("SC_CLK_TCK"), command)


def _clock_seconds(text: str) -> float:
    """Read ``[[days-]hours:]minutes:seconds``."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in clock.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86400 * int(days or 0)


def cpu_seconds(root: int) -> dict[str, float]:
    """Return CPU seconds of a process and its descendants, by stage (``by_stage``)."""
    return {
        stage: sum(process.cpu_s for process in processes)
        for stage, processes in by_stage(root).items()
    }


def memory_by_stage(root: int) -> dict[str, dict[str, float]]:
    """Return the memory of a process and its descendants, in MiB, by stage (``memory_mb``)."""
    found: dict[str, dict[str, float]] = {}
    for stage, processes in by_stage(root).items():
        sums = {"anonymous": 0.0, "files": 0.0}
        for process in processes:
            with suppress(OSError):  # it ended while we looked
                memory = memory_mb(process.pid)
                sums = {name: round(had + memory[name], 1) for name, had in sums.items()}
        found[stage] = sums
    return found


def by_stage(root: int) -> dict[str, list[Process]]:
    """Return a process and its descendants, by stage.

    A stage is the word after ``--node`` on a process's command line; what has none counts as the
    stage that started it. The root is the ``supervisor`` where there are nodes, else ``server``.
    """
    processes = {process.pid: process for process in list_processes()}
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    stages: dict[str, list[Process]] = {}
    pending = [(root, "server")]
    while pending:
        pid, stage = pending.pop()
        if pid not in processes:
            continue
        words = processes[pid].command.split()
        if pid != root and "--node" in words[:-1]:
            stage = words[words.index("--node") + 1]
        stages.setdefault(stage, []).append(processes[pid])
        pending += [(child, stage) for child in children.get(pid, [])]
    if len(stages) > 1:
        stages["supervisor"] = stages.pop("server")
    return stages


def own_cpu_seconds() -> float:
    """Return CPU seconds of this process, all threads together."""
    return time.process_time()
