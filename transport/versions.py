"""Messages of a deployment: what takes an actor from one version of a model to the next.

All but ``VersionState`` are asked, never told, may be asked again without harm, and are answered
at once with a ``VersionState``: who waits for a load to end asks again. Each carries the number
of its deployment. An actor obeys one deployment of a model at a time, and says in its answers which
one; it forgets one from which it hears nothing for ``LEASE_S``.
"""

from __future__ import annotations

from typing import Final

import attrs

from transport.errors import LocalProtocolError

LEASE_S: Final = 3.0
"""Far above the gaps between a deployment's words; whoever wants to go on after one that has died
waits for it."""

STATES: Final = ("absent", "loading", "ready", "failed")


@attrs.frozen(kw_only=True)
class LoadVersion:
    """Load a bundle beside what is held of a model.

    Attributes:
        deployment: Its number; 0 of a gateway that uses this version and misses it there.
        version: The bundle's; another one at that place is not loaded.
        bundle: Path of its folder, on the machine of whoever is asked.
    """

    deployment: int
    model: str
    version: str
    bundle: str


@attrs.frozen(kw_only=True)
class UseVersion:
    """Serve what comes from now on with a version that is ready, and come back with it.

    ``deployment`` 0 comes of a gateway that uses it, and counts while there is no deployment.
    """

    deployment: int
    model: str
    version: str


@attrs.frozen(kw_only=True)
class DropVersion:
    """Give a version back, unless it is used or something of it is in flight."""

    deployment: int
    model: str
    version: str


@attrs.frozen(kw_only=True)
class VersionRequest:
    """Say how it stands with a version; ``deployment`` 0 only looks."""

    deployment: int
    model: str
    version: str


@attrs.frozen(kw_only=True)
class EndDeployment:
    """Forget this deployment: another may begin at once."""

    deployment: int
    model: str
    version: str


@attrs.frozen(kw_only=True)
class VersionState:
    """How an actor stands with a version of a model.

    Attributes:
        deployment: The one that the actor obeys, 0 if none. Whoever asked in the name of another
            one was not obeyed.
        version: The one that was asked about.
        state: One of ``STATES``.
        percent: How far its loading has come.
        n_in_flight: Requests that it still serves, as this actor knows.
        message: Why it failed.
        current: The version that the actor uses.
        built_from: The name of the model that the current one was built from.
        held: All versions that the actor has, or loads.
    """

    deployment: int
    model: str
    version: str
    state: str
    percent: int = 0
    n_in_flight: int = 0
    message: str = ""
    current: str = ""
    built_from: str = ""
    held: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.state not in STATES:
            raise LocalProtocolError(f"VersionState.state: want one of {STATES}, got {self.state}")
