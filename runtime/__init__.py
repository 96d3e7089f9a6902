"""What actors live in: mailboxes, supervision, topology, windows, the node.

Reading order:

* ``actor.py``: what an actor is, and what it may ask of its surroundings.
* ``mailbox.py``, ``refs.py``: how it gets messages, and sends them within a process;
  ``bus.py``, ``link.py``, ``liveness.py``: to actors in other processes.
* ``supervisor.py``, ``host.py``: how actors start, are replaced when they die, and stop.
* ``topology.py``, ``cluster_file.py``: which actors there are, and where.
* ``node.py``, the command line; ``foreground.py``, one node; ``launch.py``, a cluster of them;
  ``compose.py``, where the names of classes become actors; ``reports.py``, what nodes tell;
  ``mps.py``, the daemon through which nodes share a card.
* ``deployed.py``: what an actor comes back with; ``deployment.py``: how that changes.
* ``service.py``: the actors inside somebody else's Python service.
* ``admission.py``: how many requests are let in. ``window.py``, ``launch_time.py``: when a
  TensorBatch closes. ``lanes.py``: the threads that run it. ``metrics.py``: what is counted.
  ``memory.py``: what is given back.
* ``bench/``: ``python -m runtime.bench``.

An actor's failure goes up: to its supervisor, which replaces the actor; when that is in vain, to
the node, which ends; and to whoever started the node, who starts it again.
"""
