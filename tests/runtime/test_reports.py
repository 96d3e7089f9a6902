from __future__ import annotations

import io

from runtime.reports import Console, Failure, Report, pack, unpack


def test_a_report_survives_its_way_through_the_pipe_as_one_line() -> None:
    for report in (Report("a", "starting", 0.25), Report("b", "ready", 1.0), Failure("a\nb: 'ü'")):
        line = pack(report)
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
        assert unpack(line) == report


def test_progress_is_told_by_fifths_and_anew_after_a_restart() -> None:
    out = io.StringIO()
    console = Console(out)
    for percent in range(0, 101, 5):
        console.tell(Report("shard-0", "starting", percent / 100))
    console.tell(Report("shard-0", "ready", 1.0))
    console.tell(Report("shard-0", "away"))
    console.tell(Report("shard-0", "starting"))
    console.tell(Report("shard-0", "starting", 0.5))
    assert out.getvalue().splitlines() == [
        "shard-0: loading 20%",
        "shard-0: loading 40%",
        "shard-0: loading 60%",
        "shard-0: loading 80%",
        "shard-0: loading 100%",
        "shard-0: ready",
        "shard-0: died, is restarted",
        "shard-0: loading 50%",
    ]
