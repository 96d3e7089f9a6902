"""What every actor behind the gateway answers alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from runtime.actor import Envelope
from runtime.metrics import Metrics
from transport.messages import Ping, Pong, StatsReply, StatsRequest, Watch

_NOTHING: Final[Mapping[str, Any]] = {}


def answer_usual(envelope: Envelope, metrics: Metrics, more: Mapping[str, Any] = _NOTHING) -> bool:
    """Answer a ``Ping`` or ``StatsRequest``, keep a ``Watch``; count anything else as a stray.

    Args:
        envelope: What came.
        metrics: The actor's.
        more: What else it tells, by names that its metrics do not have.

    Returns:
        Whether it was one of these.
    """
    message = envelope.message
    if envelope.reply is not None and isinstance(message, Ping):
        envelope.reply(Pong(request_id=message.request_id, status="ready"))
    elif envelope.reply is not None and isinstance(message, Watch):
        pass  # the mailbox answers it when this actor has died
    elif envelope.reply is not None and isinstance(message, StatsRequest):
        stats = json.dumps({**metrics.snapshot(), **more})
        envelope.reply(StatsReply(request_id=message.request_id, stats=stats))
        if message.reset:
            metrics.reset()
    else:
        metrics.count("strays")
        return False
    return True
