from __future__ import annotations

import numpy as np
import pytest

from actors.update_rules import Verdict, judge
from transport.updates import UpdateBatch


def batch(number: int, previous: int, stream: int = 7) -> UpdateBatch:
    return UpdateBatch(
        updater="updater",
        model="m",
        version="v",
        table="t",
        stream=stream,
        number=number,
        previous=previous,
        newest=number,
        age_us=0,
        dtype="fp32",
        keys=np.empty(0, np.int64),
        rows=np.empty((0, 4), np.uint8),
    )


@pytest.mark.parametrize(
    ("stands", "sent", "verdict"),
    [
        ((7, 5), batch(6, 5), "apply"),
        ((7, 5), batch(9, 5), "apply"),  # those between had no rows for it
        ((7, 5), batch(5, 4), "again"),
        ((7, 5), batch(2, 0), "again"),
        ((7, 5), batch(9, 7), "gap"),
        ((7, 5), batch(9, 3), "gap"),  # its updater does not know of 5
        ((7, 5), batch(0, 0), "again"),
        ((0, 0), batch(3, 0), "apply"),
        ((0, 0), batch(3, 2), "gap"),
        ((7, 5), batch(1, 0, stream=8), "apply"),  # its updater has begun anew
        ((7, 5), batch(6, 5, stream=8), "gap"),
        ((7, 5), batch(0, 0, stream=8), "again"),
    ],
)
def test_an_update_is_judged_by_where_the_shard_stands(
    stands: tuple[int, int], sent: UpdateBatch, verdict: Verdict
) -> None:
    assert judge(*stands, sent) == verdict
