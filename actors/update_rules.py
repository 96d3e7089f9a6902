"""What a shard does with an update that it is sent, and what an updater does with the answer.

Pure: numbers in, decisions out.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from transport.updates import UpdateBatch

Verdict: TypeAlias = Literal["apply", "again", "gap"]


def judge(stream: int, applied: int, batch: UpdateBatch) -> Verdict:
    """Say what to do with an update.

    Args:
        stream: Of the last update that was applied; 0 if there was none.
        applied: That update's number.
        batch: The update, or a question (number 0).

    Returns:
        ``apply`` if it is the next one, ``again`` if it was applied before or is a question, and
        ``gap`` if one before it is missing. The first update of another stream is a next one: the
        updater has begun anew, and its rows go over the ones that are there.
    """
    if batch.number == 0:
        return "again"
    if batch.stream != stream:
        return "apply" if batch.previous == 0 else "gap"
    if batch.number <= applied:
        return "again"
    return "apply" if batch.previous == applied else "gap"
