"""A program of one bucket, what its compiled kernels take, and what the card could do at best."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from kernels.lengths.find import Found
from kernels.nvrtc import Cubin, Resources
from kernels.program import Launch, LaunchFacts, Program, Source, Target


@attrs.frozen
class Bound:
    """What no kernel can beat: memory's rate and the tensor cores'.

    Attributes:
        bytes_per_s: 4.3e12 is what an H200 was measured to copy at.
        flops_per_s: 8e14 is what library products in fp16 reach on an H100.
    """

    bytes_per_s: float = 4.3e12
    flops_per_s: float = 8e14

    def seconds(self, n_bytes: int, n_flops: int) -> float:
        """Return the least time for so much traffic and so many operations."""
        return max(n_bytes / self.bytes_per_s, n_flops / self.flops_per_s)

    def limit(self, n_bytes: int, n_flops: int) -> str:
        """Say which of the two it is."""
        memory = n_bytes / self.bytes_per_s >= n_flops / self.flops_per_s
        return "memory" if memory else "arithmetic"


@attrs.frozen
class Stage:
    """One launch of a plan.

    Attributes:
        resources: Of its kernel, if it was compiled.
        problems: Spills and the like, of its whole source.
    """

    launch: Launch
    facts: LaunchFacts
    resources: Resources | None
    problems: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Least bytes that the launch moves: each value once, and its weights."""
        crossing = sum(each.size_bytes for each in (*self.facts.reads, *self.facts.writes))
        return crossing + self.facts.weights_bytes

    @property
    def n_blocks(self) -> int:
        """Blocks of the grid."""
        x, y, z = self.launch.grid
        return x * y * z


@attrs.frozen
class Plan:
    """All that is shown.

    Attributes:
        flops_each_row: Of a batch, if what depends on the user alone were done for each row.
        sequences: Those of the graph, and which of them may be shorter.
        source_bytes: CUDA text of all modules.
    """

    model: str
    program: Program
    target: Target
    bound: Bound
    stages: tuple[Stage, ...]
    flops_each_row: int
    sequences: Found

    @property
    def source_bytes(self) -> int:
        """Size of the emitted text."""
        return sum(len(source.text) for source in self.program.sources)


def plan_of(
    model: str,
    program: Program,
    target: Target,
    bound: Bound,
    compile_source: Callable[[Source], Cubin] | None,
    flops_each_row: int,
    sequences: Found,
) -> Plan:
    """Put a plan together.

    Args:
        model: Its name.
        program: What the compiler made.
        target: What for.
        bound: What to compare with.
        compile_source: Makes cubins, which tell registers and spills; None for neither.
        flops_each_row: See ``Plan``.
        sequences: See ``Plan``.

    Raises:
        KernelsError: A source does not compile.
    """
    cubins = [compile_source(source) for source in program.sources] if compile_source else []
    stages = []
    for launch, facts in zip(program.launches, program.facts, strict=True):
        cubin = cubins[launch.source] if cubins else None
        found = () if cubin is None else cubin.resources
        stages.append(
            Stage(
                launch=launch,
                facts=facts,
                resources=next((each for each in found if each.entry == launch.entry), None),
                problems=() if cubin is None else cubin.problems,
            )
        )
    return Plan(model, program, target, bound, tuple(stages), flops_each_row, sequences)
