"""What every actor behind the gateway answers alike."""

from __future__ import annotations

import json

from runtime.actor import Envelope
from runtime.metrics import Metrics
from transport.messages import Ping, Pong, StatsReply, StatsRequest


def answer_usual(envelope: Envelope, metrics: Metrics) -> None:
    """Answer a ``Ping`` or ``StatsRequest``; count anything else as a stray."""
    message = envelope.message
    if envelope.reply is not None and isinstance(message, Ping):
        envelope.reply(Pong(request_id=message.request_id, status="ready"))
    elif envelope.reply is not None and isinstance(message, StatsRequest):
        stats = json.dumps(metrics.snapshot())
        envelope.reply(StatsReply(request_id=message.request_id, stats=stats))
        if message.reset:
            metrics.reset()
    else:
        metrics.count("strays")
