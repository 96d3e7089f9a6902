"""Tables that live in Redis, one server or a cluster, in place of an embedding shard's files.

A topology names ``actors.redis.shard.RedisShard`` where it would name an ``EmbeddingShard``. Needs
the extra ``redis``: hiredis, which packs commands and parses replies in C. The client is our own:
random keys of a cluster are a command each, and coredis, which runs under trio, spends many times
as much on a command as on a key. What ours spends, ``python -m tests.bench.bench_redis`` prints.

Reading order: ``wire.py`` (commands and replies as bytes), ``server.py`` (what a URL says),
``connection.py`` (one connection, greeted), ``link.py`` (one server, for good: pipelined, connected
again when lost), ``slots.py`` (which of a cluster's servers holds a key), ``client.py`` (commands
to any number of servers) and ``keys.py`` (many keys together), ``rows.py`` (keys and rows of a
table), ``load.py`` (fills Redis from a bundle: ``python -m actors.redis``), ``lookup.py`` (what a
batch wants of a model's tables), ``shard.py`` (the actor).
"""
