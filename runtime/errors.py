"""Errors of ``runtime``, named for what whoever catches them does."""

from __future__ import annotations


class NodeError(Exception):
    """Base of everything that ``runtime`` raises on purpose, refusals of a request aside."""


class StartError(NodeError):
    """A node cannot start as it is configured: fix what the message names, then start again."""


class TopologyError(StartError):
    """The topology is wrong: fix the named key of the named table of the cluster file.

    Attributes:
        table: Dotted name of the table, or ``""``.
        key: The key in it, or ``""`` if the table itself is at fault.
        problem: What is wrong there.
    """

    def __init__(self, table: str, key: str, problem: str, place: str = "") -> None:
        where = f"[{table}] " if table else ""
        super().__init__(f"{place}{where}{key}{': ' if key else ''}{problem}")
        self.table = table
        self.key = key
        self.problem = problem


class ActorDied(NodeError):
    """An actor broke, and its supervisor gave up on it: see ``__cause__``.

    Attributes:
        actor: Its name.
    """

    def __init__(self, actor: str, how: str) -> None:
        super().__init__(f"{actor}: {how}")
        self.actor = actor


class DeploymentFailed(NodeError):
    """A bundle was not deployed: the message says why, and what serves now; see, then try again."""
