"""Messages between processes and machines: what they are, how they travel, and the clients.

Reading order: ``messages.py`` (what is said; ``versions.py`` where models are deployed,
``updates.py`` where rows change),
``codec.py`` (the wire protocol, a pure value machine), ``columns.py`` (Python values to raw
features and back), ``sockets.py`` (ZeroMQ under trio), ``exchange.py`` (what clients do with a
request), ``client.py`` and ``blocking.py`` (the clients), ``publisher.py`` (the client that changes
rows). Modules with an underscore are parts of these.
"""
