"""TensorBatch inside a web service of threads, here the standard library's HTTP server.

    python -m examples.embed_threads          # serves one request of its own, and ends
    python -m examples.embed_threads 8000     # serves: curl 'localhost:8000/?age=24&films=50,1,172'

With Flask or FastAPI it is the same: one ``BlockingService`` in each worker process, made after the
server has forked its workers, and called by any thread (in FastAPI, by endpoints that are plain
functions)::

    service = BlockingService("bundle")       # gunicorn: in the post_worker_init hook

    @app.get("/rank")
    def rank(age: int, films: str): ...       # as ``rank`` below
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from runtime.service import BlockingService
from transport.errors import InvalidRequest, RequestError

BUNDLE = Path(__file__).parent / "movielens" / "bundle"


def rank(service: BlockingService, age: int, films: list[str]) -> list[tuple[str, float]]:
    """Return films with their scores, the best first."""
    answer = service.score(user={"age": age}, candidates={"item_id": films}, budget=0.5)
    scored = zip(films, answer.scores.tolist(), strict=True)
    return sorted(scored, key=lambda pair: -pair[1])


def handler_of(service: BlockingService) -> type[BaseHTTPRequestHandler]:
    """Return a request handler; the server runs each request in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            try:
                age, films = int(query["age"][0]), query["films"][0].split(",")
                self._answer(200, {"films": rank(service, age, films)})
            except (KeyError, ValueError) as error:
                self._answer(400, {"error": f"want age and films: {error}"})
            except InvalidRequest as error:
                self._answer(400, {"error": str(error), "field": error.field})
            except RequestError as error:  # overloaded, late, or starting: worth a retry
                self._answer(503, {"error": str(error)})

        def _answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def main(port: int | None) -> None:
    """Serve for good, or for one request if no port is given."""
    with (
        BlockingService(BUNDLE) as service,
        ThreadingHTTPServer(("127.0.0.1", port or 0), handler_of(service)) as server,
    ):
        if port is not None:
            server.serve_forever()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{address}/?age=24&films=50,1,172") as response:
            ranked = json.load(response)["films"]
        server.shutdown()
    assert {film for film, _ in ranked} == {"50", "1", "172"}
    print(ranked)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
