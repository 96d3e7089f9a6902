"""How long does the feature parser take for the DeepFM request: 26 ids, 13 numbers, in 2 blocks?

Run as ``python -m tests.bench.bench_parser``; prints one JSON line. Each request has a user block
float32 [23, 1] and a candidate block float32 [16, n], n lognormal with median 32 and sigma 1, at
most 512. ``text`` has the ids as texts instead, for vocabularies of 1,000 lines.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kernels.bundle.manifest import Lookup, Manifest, SideLayout, SideName, Source, Table
from kernels.features.blocks import RawRequest
from kernels.features.parser import Parser
from kernels.features.spec import parse_spec
from transport.messages import Block

N_IDS, N_NUMBERS, N_USER_IDS, N_USER_NUMBERS = 26, 13, 16, 7
SIZE = 1000


def make_parser(folder: Path, *, text: bool) -> Parser:
    lines = ["version = 1"]
    for k in range(N_IDS):
        encode = 'encode = "vocabulary"\nvocabulary = "v.txt"'
        if not text:
            encode = f'encode = "identity"\nsize = {SIZE}'
        lines.append(f'[features.C{k}]\nside = "{id_side(k)}"\nkind = "categorical"\n{encode}')
    lines += [
        f'[features.I{k}]\nside = "{number_side(k)}"\nkind = "numeric"' for k in range(N_NUMBERS)
    ]
    (folder / "v.txt").write_text("\n".join(f"{k:08x}" for k in range(SIZE)))
    spec = parse_spec("\n".join(lines), folder)
    manifest = Manifest(
        format=1,
        model="bench",
        version="",
        tables=tuple(
            Table(name=f"C{k}", rows=SIZE, dim=4, dtype="float32", file=f"{k}.npy")
            for k in range(N_IDS)
        ),
        user=side_layout("user"),
        candidate=side_layout("candidate"),
        outputs=(),
        kept=(),
    )
    return Parser(spec, manifest, {})


def id_side(k: int) -> SideName:
    return "user" if k < N_USER_IDS else "candidate"


def number_side(k: int) -> SideName:
    return "user" if k < N_USER_NUMBERS else "candidate"


def side_layout(side: SideName) -> SideLayout:
    ids = [f"C{k}" for k in range(N_IDS) if id_side(k) == side]
    values = [f"I{k}" for k in range(N_NUMBERS) if number_side(k) == side]
    return SideLayout(
        ids=tuple(Source(feature=name) for name in ids),
        weights=(),
        values=tuple(Source(feature=name) for name in values),
        lookups=tuple(
            Lookup(
                side=side,
                table=name,
                tensor=name,
                pooling="none",
                first_id=k,
                n_ids=1,
                first_weight=None,
                offset=4 * k,
                width=4,
            )
            for k, name in enumerate(ids)
        ),
        width=4 * len(ids) + len(values),
        program=None,
    )


def make_request(rng: np.random.Generator, *, text: bool) -> RawRequest:
    n = int(np.clip(rng.lognormal(np.log(32), 1), 1, 512))
    blocks = []
    for number, (side, rows) in enumerate((("user", 1), ("candidate", n))):
        ids = [f"C{k}" for k in range(N_IDS) if id_side(k) == side]
        numbers = [f"I{k}" for k in range(N_NUMBERS) if number_side(k) == side]
        id_values = rng.integers(0, SIZE, (len(ids), rows)).astype(np.float32)
        values = rng.random((len(numbers), rows), np.float32)
        if not text:
            together = np.concatenate([id_values, values])
            # Fresh names, as a decoder would make them
            names = tuple(str(name.encode(), "ascii") for name in ids + numbers)
            blocks.append(Block(side=number, names=names, values=together))
            continue
        blocks.append(Block(side=number, names=tuple(numbers), values=values))
        for name, row in zip(ids, id_values, strict=True):
            content = "".join(f"{int(value):08x}" for value in row).encode()
            splits = np.arange(0, 8 * rows + 1, 8, dtype=np.int32)
            data = np.frombuffer(content, np.uint8)
            blocks.append(Block(side=number, names=(name,), values=data, char_splits=splits))
    return RawRequest(n, blocks)


def measure(*, text: bool, repeats: int = 400) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(1)
    pool = [make_request(rng, text=text) for _ in range(256)]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        parser = make_parser(Path(folder), text=text)
    for n_requests in (1, 4, 16, 32):
        times = []
        for repeat in range(repeats):
            at = repeat * n_requests % len(pool)
            batch = pool[at : at + n_requests]
            start = time.perf_counter()
            parsed = parser.parse(batch)
            times.append((time.perf_counter() - start) * 1e6)
            assert not parsed.failed
        times = times[20:]
        result[str(n_requests)] = {
            "best_us": round(min(times), 1),
            "median_us": round(statistics.median(times), 1),
            "p99_us": round(sorted(times)[len(times) * 99 // 100], 1),
            "median_us_a_request": round(statistics.median(times) / n_requests, 1),
        }
    return result


def main() -> None:
    result = {
        "benchmark": "parser",
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "numbers": measure(text=False),
        "text": measure(text=True, repeats=100),
    }
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
