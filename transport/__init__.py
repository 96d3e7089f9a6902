"""Messages between processes and machines: what they are, how they travel, and the clients.

Reading order: ``messages.py`` (what is said), ``codec.py`` (the wire protocol, a pure value
machine), ``sockets.py`` (ZeroMQ under trio), ``client.py`` and ``blocking.py`` (the clients).
"""
