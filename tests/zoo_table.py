"""What ``tests.zoo`` found of a model, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs

from kernels.bundle.manifest import KeptTable


@attrs.frozen(kw_only=True)
class Result:
    """How a model did. Errors are by batch size, the largest over its cases.

    Attributes:
        random: Errors on random inputs, by rows; see ``zoo_rows``.
        host_only: Why no other executor can run it, where that was asked for.
    """

    name: str
    cases: int = 0
    max_abs: Mapping[int, float] = attrs.field(factory=dict)
    max_rel: Mapping[int, float] = attrs.field(factory=dict)
    tables_cut: int = 0
    kept: tuple[KeptTable, ...] = ()
    seconds: float = 0.0
    problem: str = ""
    random: Mapping[int, float] = attrs.field(factory=dict)
    host_only: str = ""

    @property
    def left(self) -> list[KeptTable]:
        """Tables that should have been cut and were not."""
        return [kept for kept in self.kept if not kept.positional]

    @property
    def skipped(self) -> bool:
        """Whether it was not scored, as it is for the host executor."""
        return bool(self.host_only) and not self.max_abs

    @property
    def ok(self) -> bool:
        """Whether all went as it should."""
        return not self.problem and not self.left


class Table:
    """The lines of a table of results, one after another as they come."""

    def __init__(self, names: Sequence[str], rows: Sequence[int]) -> None:
        self._rows = rows
        self._heads = ["model", "cases", "max abs", "max rel"]
        self._heads += [*(f"random {n}" for n in rows), "cut", "left", "seconds", ""]
        self._widths = [max(len(head), len("1.0e-05")) for head in self._heads]
        self._widths[0] = max((len(name) for name in names), default=0)

    def head(self) -> str:
        """Return the line of heads."""
        return self._line(self._heads)

    def lines(self, result: Result) -> Iterator[str]:
        """Return a result's line, and what there is to say of it."""
        largest = [max(each.values(), default=None) for each in (result.max_abs, result.max_rel)]
        errors = [*largest, *(result.random.get(n) for n in self._rows)]
        verdict = "host only" if result.ok and result.skipped else "pass" if result.ok else "FAIL"
        yield self._line(
            [
                result.name,
                str(result.cases),
                *("-" if error is None else f"{error:.1e}" for error in errors),
                str(result.tables_cut),
                str(len(result.left)),
                f"{result.seconds:.1f}",
                verdict,
            ]
        )
        if result.problem:
            yield f"{result.name}: {result.problem}"
        if result.host_only:
            yield f"{result.name}: host only: {result.host_only}"
        for kept in result.kept:
            what = "stays" if kept.positional else "LEFT"
            yield f"{result.name}: {what}: {kept.name} {list(kept.shape)}: {kept.reason}"

    def _line(self, cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)]
        return "  ".join(padded).rstrip()
