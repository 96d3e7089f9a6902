"""What can be known of the six models without a card: every kernel built, and what it takes."""

from __future__ import annotations

from collections.abc import Iterable

from kernels.bench.contender import Work
from kernels.bench.models import Model
from kernels.bench.ours import Prepared, prepare
from kernels.bench.report import Ceilings, columns
from kernels.errors import KernelsError
from kernels.fp8 import Scales
from kernels.nvrtc import Builder
from kernels.program import Precision, Target

_HEAD = [
    *("model", "rows", "kernel", "grid", "cluster", "threads", "registers", "spilled"),
    *("shared", "bound us", "MFLOP", "MB", "compile s"),
]


def dry_run(
    models: Iterable[Model],
    rows: Iterable[int],
    target: Target,
    precision: Precision,
    builder: Builder,
    ceilings: Ceilings,
    seed: int = 0,
    scales: Scales | None = None,
) -> tuple[str, list[str]]:
    """Compile and build everything; return a table and what is wrong, one sentence each."""
    problems, prepared = [], {}
    sizes = tuple(rows)
    for model in models:
        parameters = model.draw_parameters(seed)
        for size in sizes:
            try:
                made = prepare(model, size, parameters, target, precision, builder, scales)
                prepared[model.name, size] = made
            except KernelsError as error:
                problems.append(f"{model.name}, {size} rows: {error}")
    cells = [_HEAD]
    for (name, size), made in prepared.items():
        try:
            cells += _rows(name, size, made, ceilings)
            found = [problem for cubin in made.built() for problem in cubin.problems]
        except KernelsError as error:
            found = [str(error)]
        problems += [f"{name}, {size} rows: {problem}" for problem in found]
    return "\n".join(columns(cells)), problems


def _rows(name: str, size: int, made: Prepared, ceilings: Ceilings) -> list[list[str]]:
    program, cubins = made.program, made.built()
    work = Work(program.flops, program.bytes_moved)
    totals = [
        f"{ceilings.bound_us(work):.1f}",
        f"{work.flops / 1e6:.0f}",
        f"{work.bytes_moved / 1e6:.1f}",
        f"{made.compile_s():.1f}",
    ]
    cells: list[list[str]] = []
    for launch in program.launches:
        kernel = next(
            each for each in cubins[launch.source].resources if each.entry == launch.entry
        )
        cells.append(
            [
                *((name, str(size)) if not cells else ("", "")),
                launch.entry,
                "x".join(map(str, launch.grid)),
                str(launch.cluster),
                str(launch.block),
                str(kernel.registers),
                str(kernel.spill_store_bytes),
                str(kernel.shared_bytes + launch.shared_bytes),
                *(totals if not cells else [""] * len(totals)),
            ]
        )
    return cells
