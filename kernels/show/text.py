"""A plan as text: the whole, then each launch with its work items."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.gpu.buckets import usual_buckets
from kernels.lengths.columns import Stretch
from kernels.lengths.find import Found
from kernels.program import Bucket, Crossing
from kernels.show.plan import Plan, Stage


def describe(plan: Plan) -> str:
    """Return a plan's description, some tens of lines."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    program, target = plan.program, plan.target
    bucket = program.bucket
    yield f"model     {plan.model}"
    yield (
        f"bucket    {bucket}; "
        f"user [{program.user_width}], candidate [{program.candidate_width}] staged as "
        f"{program.input_dtype}; scores [{program.n_outputs}]"
    )
    yield (
        f"target    {target.arch}, {target.n_sms} multiprocessors, "
        f"{target.shared_bytes:,} bytes of shared memory a block; {program.precision}"
    )
    yield f"launches  {len(plan.stages)}, from {plan.source_bytes:,} characters of CUDA"
    yield (
        f"memory    {program.weights.nbytes:,} bytes of weights, "
        f"{program.scratch_bytes:,} of scratch"
    )
    yield f"bound     {_bound(plan, program.bytes_moved, program.flops)}"
    if program.user_width:
        yield (
            f"user side {program.flops:,} FLOPs; {plan.flops_each_row:,} if it were computed for "
            f"each row: {program.flops / max(plan.flops_each_row, 1):.2f}"
        )
    yield f"padding   {_padding(plan)}"
    yield from sequence_lines(plan.sequences)
    for index, stage in enumerate(plan.stages):
        yield ""
        yield from _stage(plan, stage, index)
    for problem in dict.fromkeys(each for stage in plan.stages for each in stage.problems):
        yield f"problem   {problem}"


def sequence_lines(found: Found) -> Iterator[str]:
    """Say of each sequence whether it may be shorter, and by which masks or why not."""
    shortened = found.shortened
    if shortened is not None:
        marks = {mark.stretch: mark for mark in shortened.marks}
        for stretch in shortened.stretches:
            mark = marks.get(stretch)
            kept = "the last of them" if stretch.last else "the first of them"
            if mark is None:
                yield f"sequence  {_stretch(stretch)}: {kept}, as many as a bucket's length"
            else:
                yield f"mask      {_stretch(stretch)}: {mark.dead:g} where there is no step"
        for most in sorted(shortened.needs_step):
            unless = ", unless they are alike, as padding is" if most in shortened.alike else ""
            yield f"note      of a row without any step that counts, all {most} are needed{unless}"
    for stretch, why in sorted(found.whole.items()):
        yield f"whole     {_stretch(stretch)}: {why}"


def _stretch(stretch: Stretch) -> str:
    columns = f"{stretch.input}[{stretch.start}:{stretch.stop}]"
    return f"{columns}, {stretch.most} steps of {stretch.each}"


def _bound(plan: Plan, n_bytes: int, n_flops: int) -> str:
    bound = plan.bound
    return (
        f"{n_bytes:,} bytes / {bound.bytes_per_s / 1e12:g} TB/s = "
        f"{n_bytes / bound.bytes_per_s * 1e6:.2f} us, "
        f"{n_flops:,} FLOPs / {bound.flops_per_s / 1e12:g} TFLOP/s = "
        f"{n_flops / bound.flops_per_s * 1e6:.2f} us: {bound.limit(n_bytes, n_flops)}, "
        f"{bound.seconds(n_bytes, n_flops) * 1e6:.2f} us"
    )


def _padding(plan: Plan) -> str:
    bucket = plan.program.bucket
    smaller = _next_smaller(bucket)
    batch = f"batches of {smaller + 1} to {bucket.rows} rows: {_share(bucket.rows, smaller + 1)}"
    by_lead: dict[str, str] = {}
    for stage in plan.stages:
        facts = stage.facts
        by_lead[facts.lead] = f"tiles of {facts.lead}: {_share(facts.rows_run, facts.rows)}"
    found = [f"{batch} to 0 %"]
    if plan.program.user_width:
        found.append(f"of 1 to {bucket.requests} requests: {_share(bucket.requests, 1)} to 0 %")
    return "; ".join([*found, *by_lead.values()])


def _next_smaller(bucket: Bucket) -> int:
    """Return the rows of the usual bucket below this one, or 0."""
    usual = usual_buckets(bucket.rows, bucket.requests)
    return max((each.rows for each in usual if each.rows < bucket.rows), default=0)


def _share(run: int, used: int) -> str:
    return f"{(1 - used / run) * 100:.0f} %"


def _stage(plan: Plan, stage: Stage, index: int) -> Iterator[str]:
    launch, facts = stage.launch, stage.facts
    clusters = f" in clusters of {launch.cluster}" if launch.cluster > 1 else ""
    waves = stage.n_blocks / plan.target.n_sms
    yield (
        f"launch {index}  {facts.kind} of {facts.rows} {facts.lead}: {stage.n_blocks} blocks of "
        f"{launch.block} threads{clusters} ({waves:.2f} a multiprocessor), "
        f"{launch.shared_bytes:,} bytes of shared memory"
        + (", overlaps the launch before" if launch.dependent else "")
    )
    taken = stage.resources
    if taken is not None:
        yield (
            f"  kernel  {taken.entry}: {taken.registers} registers, "
            f"{taken.spill_store_bytes} bytes spilled, {taken.stack_bytes} bytes of stack, "
            f"{taken.barriers} barriers"
        )
    yield f"  bound   {_bound(plan, stage.n_bytes, facts.flops)}"
    for verb, crossings in (("reads", facts.reads), ("writes", facts.writes)):
        for each in crossings:
            yield f"  {verb:<7} {crossing_text(each)}, {each.size_bytes:,} bytes"
    yield f"  reads   weights, {facts.weights_bytes:,} bytes"
    for number, item in enumerate(facts.items):
        done = f"  {item.flops:,} FLOPs a row" if item.flops else ""
        yield f"  {number:>5}   {item.title}{done}"


def crossing_text(crossing: Crossing) -> str:
    """Name a value in memory with its shape and element type."""
    role = crossing.pointer.role
    name = crossing.name if role == crossing.name else f"{crossing.name} ({role})"
    part = f"{crossing.used} of " if crossing.used < crossing.columns else ""
    return f"{name} [{crossing.lead}, {part}{crossing.columns}] {crossing.element}"
