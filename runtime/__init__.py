"""What actors live in: mailboxes, supervision, topology, windows, the node.

Reading order: ``actor.py`` (what an actor is and what it may ask of its surroundings),
``mailbox.py``, ``supervisor.py``, ``topology.py`` (the cluster file), ``node.py`` (the composition
root), ``window.py`` (when a TensorBatch closes), ``service.py`` (embedding in a Python service).
"""
