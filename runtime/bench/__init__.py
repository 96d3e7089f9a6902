"""The benchmark: ``python -m runtime.bench``.

Its questions: how many requests a second does a cluster hold, how long does each take, what does it
cost, and how do others do on the same?

Reading order: ``traffic.py`` (what arrives and when), ``pool.py`` (valid requests for any model),
``load.py`` (open and closed loop), ``links.py`` and ``wires.py`` (how a server is reached),
``contenders.py`` (what is measured), ``measure.py`` (one measurement, the search for a rate),
``session.py`` (a whole benchmark), ``report.py`` and ``plot.py`` (what comes out). The peers are
``whole.py``, ``peer_loop.py`` and ``peer_mosec.py``.
"""
