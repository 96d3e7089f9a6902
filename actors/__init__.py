"""The steps of a recommendation, each an actor.

Reading order: ``gateway.py`` (requests in, features parsed, lookups scattered, scores out) with
``inflight.py`` (its books) and ``scatter.py`` (one model's messages); ``shard.py`` (ids to pooled
rows); ``executor.py`` and its ``serving.py``, shells around ``engine.py`` (windows in, answers out)
and ``join.py`` (what belongs together), with ``block_layout.py`` (where it goes) and ``dense.py``
(what rows are scored on). ``options.py`` reads what a topology says to each; ``usual.py`` is what
they answer alike. Tables may lie in Redis instead: ``redis/`` has the shard for that.

Which shard holds what, and so what each is asked, is ``layouts.py``; tables that are divided come
as rows, ``fetch.py``, which an executor pools, ``pooling.py``; ``joins.py`` knows when they are
late. Groups have replicas: ``asking.py`` with ``replicas.py`` says who is asked, ``asker.py`` does
it for a gateway, ``probing.py`` watches who lives, ``defaults.py`` makes what stands for rows that
are gone. Of tables that are cached an executor keeps hot rows: ``hot_rows.py`` with ``flights.py``,
and ``hot_asker.py``, which fetches the others; what it is told of them is ``hot_table.py``, with
``hot_open.py``, where they are kept ``hot_kept.py``, and what a batch has of those on a card,
``card_part.py`` and ``card_rows.py``.

Models are replaced while they are served: ``versions.py`` is what each actor holds and does for it,
``restore.py`` what a gateway sees to, ``deploy.py`` the command.

Rows are changed while they are served: ``updater.py`` numbers and keeps updates (``update_intake``,
``update_stream``) and feeds shards (``update_fed``, ``update_feed``; ``update_routes`` says whom);
``update_shard.py`` and ``update_replica.py`` are a shard's side of it; ``update.py`` is a command.
"""
