"""The steps of a recommendation, each an actor.

Reading order: ``gateway.py`` (requests in, features parsed, lookups scattered, scores out),
``shard.py`` (ids to pooled rows), ``executor.py`` (parts joined, windows closed, scores computed).
"""
