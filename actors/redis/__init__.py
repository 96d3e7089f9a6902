"""Tables that live in Redis, one server or a cluster, in place of an embedding shard's files.

A topology names ``actors.redis.shard.RedisShard`` where it would name an ``EmbeddingShard``. Needs
the extra ``redis``: hiredis, which parses replies in C. The client is our own: the asyncio clients
take 14 us (one server) to 250 us (a cluster) for each command of a pipeline, and random keys of a
cluster are a command each; here it is 2 us.

Reading order: ``wire.py`` (commands and replies as bytes), ``server.py`` (what a URL says),
``connection.py`` (one connection, greeted), ``link.py`` (one server, for good: pipelined, connected
again when lost), ``slots.py`` (which of a cluster's servers holds a key), ``client.py`` (many keys
from any number of servers), ``rows.py`` (keys and rows of a table), ``load.py`` (fills Redis from a
bundle: ``python -m actors.redis``), ``lookup.py`` (what a batch wants of a model's tables),
``shard.py`` (the actor).
"""
