"""TensorBatch inside a Python service: the same actors, in the service's own process.

``Service`` is for programs that run on trio; its actors run in the caller's event loop::

    async with Service.open("examples/movielens/bundle") as service:
        answer = await service.score(user={"age": 24}, candidates={"item_id": ["1"]}, budget=0.1)

``BlockingService`` is for threads, such as those of a Flask or FastAPI worker. It runs an
event loop in a thread of its own, and any number of threads may call it at once; their requests
share launches. Make it in the process that serves: threads do not survive a fork, so under a
pre-forking server (gunicorn, uWSGI) that is in the worker, after the fork.

Either serves another bundle without a gap after ``deploy``.

Both take a bundle's folder, a cluster file, or a ``Topology``. Whatever nodes there are, all
actors run in this process, and reach each other without sockets; clients can connect as well if
the gateway's options say ``listen``. Errors are those of the clients in ``transport``.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import attrs
import trio

from runtime import cluster_file
from runtime.compose import FATAL, HOPELESS, check_bundles, factories_of
from runtime.deployment import Deployment, Outcome
from runtime.errors import ActorDied, StartError
from runtime.host import Host
from runtime.supervisor import describe, sole
from runtime.topology import GATEWAY, Topology, all_in_one
from transport.columns import Columns
from transport.errors import DeadlineExceeded, InvalidRequest, RequestError, Unavailable
from transport.exchange import (
    Candidates,
    Scores,
    expect,
    read_json,
    read_scores,
    score_request,
)
from transport.messages import Message, ScoreReply, ScoreRequest, StatsReply, StatsRequest

log = logging.getLogger(__name__)

# A start reads the bundle and, the first time on a machine, compiles the lookups.
_START_S: Final = 300.0
# The gateway answers at the deadline; this is for a gateway that cannot.
_SLACK_S: Final = 0.1
_BUDGET_MOST_S: Final = 3600.0


class Service:
    """A cluster's actors in this event loop. Made by ``Service.open``."""

    def __init__(self, host: Host, gateway: str) -> None:
        self._host = host
        self._gateway = gateway

    @staticmethod
    @asynccontextmanager
    async def open(what: Topology | Path | str) -> AsyncIterator[Service]:
        """Start the actors, and stop them at the end: what was taken is finished.

        Args:
            what: A topology, a cluster file (``.toml``), or a bundle's folder, whose name is then
                the model's.

        Raises:
            StartError: The topology is wrong, or an actor cannot start as it is configured. So may
                ``BundleError`` and others that name what is wrong.
            ActorDied: An actor broke for good; the body is cancelled.
        """
        topology, gateway = read(what)
        host = Host(topology, factories_of(topology.nodes), hopeless=HOPELESS, fatal=FATAL)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(host.run)
                yield Service(host, gateway)
                await host.stop(topology.drain_s)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # One error is what the body, or an actor, has raised: the nursery is our own affair.
            error = sole(group)
            if isinstance(error, ActorDied) and isinstance(error.__cause__, HOPELESS):
                error = error.__cause__
            if isinstance(error, BaseExceptionGroup):
                raise
            raise error from error.__cause__

    async def score(
        self,
        *,
        user: Columns,
        candidates: Candidates,
        model: str | None = None,
        budget: float = 1.0,
    ) -> Scores:
        """Return the scores of one user's candidates, as ``transport.client.Client.score``.

        Args:
            user: Feature names to values.
            candidates: Columns, or one mapping for each candidate.
            model: Its name; not needed if there is but one.
            budget: Seconds in which the answer is of use.

        Raises:
            RequestError: As the client's; nothing is tried again, as there is only one gateway.
        """
        request = self.request(user, candidates, model, budget)
        ref = self._host.ref(self._gateway)
        return _scores(await ref.ask(request, budget=budget + _SLACK_S), request)

    async def stats(self, *, reset: bool = False, budget: float = 5.0) -> dict[str, Any]:
        """Return each actor's counters and histograms, times in microseconds.

        Raises:
            RequestError: As ``score``.
        """
        question = StatsRequest(request_id=1, reset=reset)
        return _stats(await self._host.ref(self._gateway).ask(question, budget=budget))

    async def deploy(
        self,
        bundle: Path | str,
        *,
        model: str | None = None,
        any_origin: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        """Serve a model with another bundle from now on, without a gap (``runtime.deployment``).

        The bundle is served for as long as this service lives: the next one begins with what it
        is opened with.

        Args:
            bundle: The bundle's folder.
            model: The model's name; not needed if there is but one.
            any_origin: Whether the bundle may be built from another model.
            say: Gets lines that say how far it is.

        Raises:
            DeploymentFailed: It was not deployed; says why, and what serves.
        """
        name = self._model_name(model)
        deployment = Deployment(
            self._host.topology,
            self._host.ref,
            name,
            Path(bundle),
            say=say,
            any_origin=any_origin,
        )
        return await deployment.run()

    def _model_name(self, model: str | None) -> str:
        models = self._host.topology.models
        if model is None:
            if len(models) != 1:
                raise InvalidRequest(f"model: want one of {', '.join(models)}", "model")
            (model,) = models
        return model

    def request(
        self, user: Columns, candidates: Candidates, model: str | None, budget: float
    ) -> ScoreRequest:
        """Return a request; may be called from any thread.

        Raises:
            InvalidRequest: A feature has no form that the protocol knows, or it is not said which
                of several models is meant.
        """
        model = self._model_name(model)
        if not 0 < budget < _BUDGET_MOST_S:
            raise InvalidRequest(f"budget: want seconds above 0, got {budget!r}", "budget")
        request = score_request(model, user, candidates)
        return attrs.evolve(request, request_id=1, budget_us=int(budget * 1e6))

    def ask_nowait(self, message: Message, deliver: Callable[[Message], None]) -> None:
        """Ask the gateway; ``deliver`` gets the answer, in this event loop's thread.

        Raises:
            Overloaded: The gateway's mailbox is full.
            Unavailable: It has ended, or is being restarted.
        """
        mailbox = self._host.mailbox(self._gateway)
        assert mailbox is not None
        mailbox.put_ask_nowait(message, trio.current_time(), deliver)


class BlockingService:
    """A cluster's actors in an event loop of their own, for threads to call. Thread-safe.

    A context manager. Without one, it is closed when the interpreter exits.
    """

    def __init__(self, what: Topology | Path | str) -> None:
        """Start; return when all actors are ready. Arguments and errors: ``Service.open``."""
        self._what = what
        self._pid = os.getpid()
        self._service: Service | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._closing = trio.Event()
        self._started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tensorbatch", daemon=True)
        self._thread.start()
        try:
            error = self._started.get(timeout=_START_S)
        except queue.Empty:
            raise StartError(f"{what}: not ready after {_START_S:g} s") from None
        if error is not None:
            raise error
        # The thread is a daemon, or the interpreter would wait for it before it gets to ask it to
        # end; this comes before daemons are frozen in the middle of what they do.
        atexit.register(self.close)

    def score(
        self,
        *,
        user: Columns,
        candidates: Candidates,
        model: str | None = None,
        budget: float = 1.0,
    ) -> Scores:
        """Return the scores of one user's candidates; see ``Service.score``."""
        service = self._checked()
        request = service.request(user, candidates, model, budget)
        return _scores(self._ask(service, request, budget + _SLACK_S), request)

    def stats(self, *, reset: bool = False, budget: float = 5.0) -> dict[str, Any]:
        """Return each actor's counters and histograms; see ``Service.stats``."""
        question = StatsRequest(request_id=1, reset=reset)
        return _stats(self._ask(self._checked(), question, budget))

    def deploy(
        self,
        bundle: Path | str,
        *,
        model: str | None = None,
        any_origin: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        """Serve a model with another bundle from now on; see ``Service.deploy``.

        ``say`` is called in the event loop's thread.
        """
        service = self._checked()
        deploy = functools.partial(
            service.deploy, bundle, model=model, any_origin=any_origin, say=say
        )
        try:
            return trio.from_thread.run(deploy, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise Unavailable("the service is closed") from None

    def close(self) -> None:
        """Finish what was taken, and end. A second call, or one after a fork, does nothing."""
        if os.getpid() != self._pid or self._token is None:
            return
        atexit.unregister(self.close)
        with suppress(trio.RunFinishedError):  # it has ended already
            self._token.run_sync_soon(self._closing.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self) -> Service:
        if os.getpid() != self._pid:
            raise StartError(
                "this BlockingService was made before a fork, which its threads did not survive: "
                "make it in the process that uses it (under gunicorn in a post_fork or "
                "post_worker_init hook, or at a worker's first request; without --preload)"
            )
        if self._service is None:
            raise Unavailable("the service is closed")
        return self._service

    def _ask(self, service: Service, message: Message, budget: float) -> Message | RequestError:
        """Ask the gateway from this thread.

        One ``run_sync_soon`` in, one queue out: half the cost of ``trio.from_thread.run``, which
        makes a task of each call.
        """
        answers: queue.SimpleQueue[Message | RequestError] = queue.SimpleQueue()

        def submit() -> None:
            try:
                service.ask_nowait(message, answers.put)
            except RequestError as error:
                answers.put(error)

        assert self._token is not None
        try:
            self._token.run_sync_soon(submit)
            return answers.get(timeout=max(budget, 0.0))
        except trio.RunFinishedError:
            raise Unavailable("the service is closed") from None
        except queue.Empty:
            raise DeadlineExceeded(f"no answer within {budget * 1e3:g} ms") from None

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except Exception as error:  # the seam between two threads
            if self._service is None:
                self._started.put(error)
            else:
                log.error("the service has ended: %s", describe(error), exc_info=error)
        finally:
            self._service = None

    async def _serve(self) -> None:
        async with Service.open(self._what) as service:
            self._token = trio.lowlevel.current_trio_token()
            self._service = service
            self._started.put(None)
            await self._closing.wait()


def read(what: Topology | Path | str) -> tuple[Topology, str]:
    """Return a topology, and the name of its gateway.

    Raises:
        StartError: It is wrong, or has no gateway.
    """
    if isinstance(what, Topology):
        topology = what
    elif Path(what).suffix == ".toml":
        topology = cluster_file.load(what)
    else:
        topology = all_in_one(what)
    check_bundles(topology)
    if topology.gateways:
        return topology, topology.gateways[0]
    raise StartError(f"the topology has no gateway, an actor of class {GATEWAY}")


def _scores(answer: Message | RequestError, request: ScoreRequest) -> Scores:
    return read_scores(expect(answer, ScoreReply), request)


def _stats(answer: Message | RequestError) -> dict[str, Any]:
    return read_json(expect(answer, StatsReply).stats)
