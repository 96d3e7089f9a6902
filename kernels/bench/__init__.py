"""The kernel benchmark: ``python -m kernels.bench``.

Its question: how long does a batch of each of six models take on this card, beside torch (eager and
compiled, each in a CUDA graph) and XLA, in one run, on the same inputs and parameters?

Inputs are on the card already. Ours takes them as a launch of the executor does: one candidate
block ``[rows, ld]``, fp16 (fp32 with ``--precision fp32`` or ``tf32``), embeddings first, numbers
last. Peers take each input as a contiguous tensor of its own in the precision measured. No
contender is timed on a copy to or from the card. Each result is first checked against float64, on
several draws of inputs, with ragged masks and with the output filled with NaN before.

A time is the median device time of one CUDA graph replay between two events, after the L2 was
overwritten; *in a row* is that of 20 replays, divided by 20. Ours and torch's graphs go through the
same loop on the same stream; how XLA is timed, ``peer_xla.py`` says.

Reading order: ``models.py`` (what is run), ``graphs.py``, ``torch_models.py``, ``xla_models.py``
(it, three times), ``contender.py`` (the interface, and the loop that times), ``ours.py``,
``peer_torch.py``, ``peer_xla.py``, ``session.py`` (check and time), ``report.py``, ``dry_run.py``.
"""
