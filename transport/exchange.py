"""What every client does with a request, whoever waits for the socket: build, read, try again."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import attrs

from transport import errors
from transport._arrays import Frame
from transport.codec import decode
from transport.columns import Columns, blocks_from_columns, blocks_from_rows, count_candidates
from transport.messages import (
    CANDIDATE,
    USER,
    ErrorReply,
    Message,
    ModelsRequest,
    Ping,
    ScoreReply,
    ScoreRequest,
    StatsRequest,
)
from transport.values import F32

Candidates: TypeAlias = Columns | Sequence[Columns]
"""Columns with a value for each candidate, or for each candidate a mapping of its features."""

Question: TypeAlias = ScoreRequest | ModelsRequest | Ping | StatsRequest
_Answer = TypeVar("_Answer")

_MAX_BUDGET_S: Final = 3600.0


@attrs.frozen(eq=False)
class Scores:
    """The scores of a request's candidates, in the request's order.

    Attributes:
        outputs: The model's outputs by name: float32 ``[n]``, or ``[n, width]`` of wider ones.
            Read-only views of the received frame.
        degraded: Whether embedding rows that could not be had were replaced by default rows, as
            the model's operator chose.
    """

    outputs: dict[str, F32]
    degraded: bool = False

    @property
    def scores(self) -> F32:
        """The model's first output."""
        return next(iter(self.outputs.values()))


@attrs.frozen(kw_only=True)
class RetryPolicy:
    """How a request is tried again after ``Overloaded``, ``Unavailable`` or a damaged answer.

    Waits double, and are drawn from their upper half, so that clients that were refused together
    do not come back together.

    Attributes:
        n_attempts: All of them, the first included.
        first_wait_s: Before the second attempt.
        longest_wait_s: What doubling ends at.
    """

    n_attempts: int = attrs.field(default=8, validator=attrs.validators.ge(1))
    first_wait_s: float = attrs.field(default=0.005, validator=attrs.validators.ge(0))
    longest_wait_s: float = attrs.field(default=0.25, validator=attrs.validators.ge(0))

    def wait_s(self, n_failed: int, chance: float) -> float:
        """Return how long to wait after ``n_failed`` attempts; ``chance`` is drawn from [0, 1)."""
        longest = min(self.first_wait_s * 2.0 ** (n_failed - 1), self.longest_wait_s)
        return longest * (0.5 + chance / 2)


class Attempts:
    """Decides whether one request is tried again, and when. It is told the time, in seconds."""

    def __init__(self, budget: float, now: float, policy: RetryPolicy) -> None:
        """Begin the first attempt.

        Raises:
            InvalidRequest: ``budget`` is no positive number of seconds.
        """
        if not (isinstance(budget, (int, float)) and 0 < budget < math.inf):
            raise errors.InvalidRequest(f"budget: want seconds above 0, got {budget!r}", "budget")
        self._budget = budget
        self.deadline = now + min(budget, _MAX_BUDGET_S)
        self._policy = policy
        self._n_failed = 0

    def prepare(self, question: Question, request_id: int, now: float) -> Question:
        """Return the question as it is sent now: with its id, and with what is left to answer it.

        Raises:
            DeadlineExceeded: Nothing is left.
        """
        left_us = int((self.deadline - now) * 1e6)
        if left_us <= 0:
            raise self.time_out()
        if isinstance(question, ScoreRequest):
            return attrs.evolve(question, request_id=request_id, budget_us=left_us)
        return attrs.evolve(question, request_id=request_id)

    def wait_s(self, error: errors.TransportError, now: float) -> float:
        """Return how long to wait before the next attempt, which may be on another connection.

        Raises:
            TransportError: ``error`` itself, if there is to be none.
        """
        self._n_failed += 1
        if not isinstance(error, _WORTH_RETRYING) or self._n_failed >= self._policy.n_attempts:
            raise error
        wait_s = self._policy.wait_s(self._n_failed, random.random())
        if now + wait_s >= self.deadline:
            raise error
        return wait_s

    def time_out(self) -> errors.DeadlineExceeded:
        """Return what to raise when the deadline has come."""
        return errors.DeadlineExceeded(f"no answer within {self._budget:g} s")


_WORTH_RETRYING: Final = (errors.Overloaded, errors.Unavailable, errors.RemoteProtocolError)


def score_request(model: str, user: Columns, candidates: Candidates) -> ScoreRequest:
    """Return a request whose id and budget are still to be set.

    Raises:
        InvalidRequest: A feature has no form that the protocol knows.
    """
    if not isinstance(user, Mapping):
        raise errors.InvalidRequest("user: want a mapping of feature names to values", "user")
    if isinstance(candidates, Mapping):
        n = count_candidates(candidates)
        blocks = (
            *blocks_from_columns(USER, user, 1),
            *blocks_from_columns(CANDIDATE, candidates, n),
        )
    elif isinstance(candidates, Sequence) and not isinstance(candidates, (str, bytes)):
        n = len(candidates)
        blocks = blocks_from_rows(user, candidates)
    else:
        raise errors.InvalidRequest(
            "candidates: want a mapping of columns, or a sequence of mappings", "candidates"
        )
    return ScoreRequest(request_id=0, model=model, budget_us=0, n_candidates=n, blocks=blocks)


def read_scores(reply: ScoreReply, request: ScoreRequest) -> Scores:
    """Return the scores in an answer.

    Raises:
        RemoteProtocolError: They are not of that many candidates, or there are none.
    """
    if len(reply.scores) != request.n_candidates or not reply.outputs:
        raise errors.RemoteProtocolError(
            f"asked for {request.n_candidates} candidates, got scores {reply.scores.shape} "
            f"of outputs {reply.outputs}"
        )
    outputs = {}
    start = 0
    for name, width in zip(reply.outputs, reply.widths, strict=True):
        columns = reply.scores[:, start : start + width]
        outputs[name] = columns[:, 0] if width == 1 else columns
        start += width
    return Scores(outputs, reply.degraded)


def read_json(text: str) -> dict[str, Any]:
    """Return the object that an answer holds as JSON.

    Raises:
        RemoteProtocolError: It is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.RemoteProtocolError(f"the answer is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise errors.RemoteProtocolError("the answer is not a JSON object")
    return value


def expect(answer: Message | errors.TransportError, kind: type[_Answer]) -> _Answer:
    """Return an answer of the kind that was asked for.

    Raises:
        TransportError: ``answer`` itself.
        RequestError: The server answered with an error.
        RemoteProtocolError: It answered something else.
    """
    if isinstance(answer, kind):
        return answer
    if isinstance(answer, errors.TransportError):
        # One failure may be that of many requests, each of which adds its traceback.
        raise copy.copy(answer)
    if isinstance(answer, ErrorReply):
        raise errors.error_of(answer.code, answer.message, answer.field)
    raise errors.RemoteProtocolError(f"want a {kind.__name__}, got a {type(answer).__name__}")


def read_answer(
    frames: Sequence[Frame], address: str
) -> tuple[int | None, Message | errors.TransportError]:
    """Return which request a message from ``address`` concerns, and its answer or failure.

    None concerns every request in flight there: the server could not read even the id of what it
    refuses, or we cannot of what it says; so it was one of them, or will be all.
    """
    try:
        answer = decode(frames).message
    except errors.RemoteProtocolError as error:
        failure = errors.RemoteProtocolError(f"{address}: {error}", error.request_id)
        return error.request_id, failure
    request_id = getattr(answer, "request_id", None)
    if not isinstance(request_id, int):
        kind = type(answer).__name__
        return None, errors.RemoteProtocolError(f"{address}: a {kind} is not for clients")
    if request_id == 0 and isinstance(answer, ErrorReply):
        return None, errors.error_of(answer.code, answer.message, answer.field)
    return request_id, answer
