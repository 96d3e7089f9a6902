"""What ptxas says of a cubin: registers, spills, stack, shared memory, and advice like C7510.

Advice of the C75xx family is only a message, but means that wgmma was serialised, at a third of its
speed. ``problems`` is what continuous integration fails on.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

_FUNCTION: Final = re.compile(r"Function properties for (\S+)")
_STACK: Final = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_USED: Final = re.compile(r"Used (\d+) registers(.*)")
_BARRIERS: Final = re.compile(r"used (\d+) barriers")
_SHARED: Final = re.compile(r"(\d+) bytes smem")
_CONSTANT: Final = re.compile(r"(\d+) bytes cmem\[\d+\]")
_ADVICE: Final = re.compile(r"\bC75\d\d\b")


@attrs.frozen
class Resources:
    """What one kernel takes, or one function that was not inlined.

    Attributes:
        entry: A kernel's ``extern "C"`` name, a function's mangled one.
        registers: Of a thread; 0 for a function, whose callers have them.
        stack_bytes: Of a thread, in local memory.
        spill_store_bytes, spill_load_bytes: Part of that traffic which is for want of registers.
        shared_bytes: Static shared memory; a launch adds its dynamic share.
        constant_bytes: In all banks; not said for every architecture.
    """

    entry: str
    registers: int = 0
    stack_bytes: int = 0
    spill_store_bytes: int = 0
    spill_load_bytes: int = 0
    shared_bytes: int = 0
    constant_bytes: int = 0
    barriers: int = 0


def parse_log(log: str) -> tuple[tuple[Resources, ...], tuple[str, ...]]:
    """Return what each function takes, in the log's order, and the lines of advice C75xx."""
    found: list[Resources] = []
    advice = []
    for line in log.splitlines():
        if _ADVICE.search(line):
            advice.append(line.strip())
        elif match := _FUNCTION.search(line):
            found.append(Resources(match[1]))
        elif not found:
            continue
        elif match := _STACK.search(line):
            found[-1] = attrs.evolve(
                found[-1],
                stack_bytes=int(match[1]),
                spill_store_bytes=int(match[2]),
                spill_load_bytes=int(match[3]),
            )
        elif match := _USED.search(line):
            found[-1] = attrs.evolve(
                found[-1],
                registers=int(match[1]),
                barriers=_total(_BARRIERS, match[2]),
                shared_bytes=_total(_SHARED, match[2]),
                constant_bytes=_total(_CONSTANT, match[2]),
            )
    return tuple(found), tuple(advice)


def problems(log: str) -> list[str]:
    """Return what is wrong with a cubin though it compiled, one sentence each, from its log."""
    found, advice = parse_log(log)
    said = list(advice)
    for kernel in found:
        if kernel.spill_store_bytes or kernel.spill_load_bytes:
            said.append(
                f"{kernel.entry} spills: {kernel.spill_store_bytes} bytes stored, "
                f"{kernel.spill_load_bytes} loaded, with {kernel.registers} registers"
            )
        elif kernel.stack_bytes:
            said.append(f"{kernel.entry} keeps {kernel.stack_bytes} bytes a thread on a stack")
    return said


def _total(pattern: re.Pattern[str], text: str) -> int:
    return sum(int(number) for number in pattern.findall(text))
