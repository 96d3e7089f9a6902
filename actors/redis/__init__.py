"""Tables that live in Redis, one server or a cluster, in place of an embedding shard's files.

A topology names ``actors.redis.shard.RedisShard`` where it would name an ``EmbeddingShard``. Needs
the extra ``redis``: hiredis, which packs commands and parses replies in C. The client is our own,
as a cluster takes random keys one to a command: coredis 6.9, the client that runs under trio, took
50 to 250 us of processor time for each such key, and 2 us for each key of a single server's
``MGET``. What ours takes is what ``python -m tests.bench.bench_redis`` prints.

Reading order: ``wire.py`` (commands and replies as bytes), ``server.py`` (what a URL says),
``connection.py`` (one connection, greeted), ``link.py`` (one server, for good: pipelined, connected
again when lost), ``slots.py`` (which of a cluster's servers holds a key), ``client.py`` (many keys
from any number of servers), ``rows.py`` (keys and rows of a table), ``load.py`` (fills Redis from a
bundle: ``python -m actors.redis``), ``lookup.py`` (what a batch wants of a model's tables),
``shard.py`` (the actor).
"""
