"""Random valid requests for any model, from what its gateway says that it wants.

A gateway describes each feature that clients send (``kernels.features``: ``FeatureSpec.describe``);
that is enough for everything but vocabularies, whose lines come from the bundle's own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from runtime.bench.traffic import Sizes, skewed_ids
from transport.messages import CANDIDATE, SIDES, USER, Block, ScoreRequest

# Hashed features and keys have any number of values; this many show the skew of real ones.
_N_HASHED: Final = 1_000_000
# float32 holds integers below this exactly, so ids may share a block with numbers.
_FLOAT_IDS: Final = 1 << 24


@attrs.frozen(kw_only=True)
class Wanted:
    """A feature that clients send.

    Attributes:
        side: ``USER`` or ``CANDIDATE``.
        kind: ``categorical``, ``numeric``, or a list: ``multi`` or ``sequence``.
        width: Values of a request or candidate; the most, if it is a list.
        n_ids: Distinct values, 0 for numbers.
        words: The values themselves, if it has a vocabulary.
    """

    name: str
    side: int
    kind: str
    width: int
    n_ids: int
    words: tuple[str, ...] = ()

    @property
    def is_list(self) -> bool:
        """Whether rows have different numbers of values."""
        return self.kind in ("multi", "sequence")


def read_wanted(
    described: Sequence[Mapping[str, Any]], vocabularies: Mapping[str, Sequence[str]]
) -> list[Wanted]:
    """Read the features of a ``ModelsReply``.

    Args:
        described: Of one model.
        vocabularies: Feature name to the lines of its vocabulary, for those that have one.

    Raises:
        ValueError: A feature has a vocabulary that is not given.
    """
    wanted = []
    for feature in described:
        name, encode = feature["name"], feature.get("encode")
        if encode == "vocabulary" and name not in vocabularies:
            raise ValueError(
                f"feature {name!r}: its values are a vocabulary's, which only the bundle has: "
                "give --bundle too"
            )
        words = tuple(vocabularies[name]) if encode == "vocabulary" else ()
        given = {"vocabulary": len(words), "hash": _N_HASHED, "key": _N_HASHED, None: 0}
        n_ids = given.get(encode)
        wanted.append(
            Wanted(
                name=name,
                side=SIDES.index(feature["side"]),
                kind=feature["kind"],
                width=feature["width"],
                n_ids=int(feature["size"]) if n_ids is None else n_ids,
                words=words,
            )
        )
    return wanted


@attrs.frozen(kw_only=True, eq=False)
class Pool:
    """Distinct requests, to be sent over and over.

    Attributes:
        rows: int64 ``[n]``, candidates of each.
    """

    requests: tuple[ScoreRequest, ...]
    rows: NDArray[np.int64]


def make_pool(
    wanted: Sequence[Wanted],
    *,
    model: str,
    n: int,
    sizes: Sizes,
    skew: float,
    budget_us: int,
    rng: np.random.Generator,
) -> Pool:
    """Make ``n`` requests, each side's columns in as few blocks as their types allow.

    Args:
        wanted: The model's features.
        model: Its name.
        n: How many distinct requests.
        sizes: Candidates of each.
        skew: Exponent of the power law that ids follow; 0 for uniform ones.
        budget_us: Of each request.
        rng: Makes it repeatable.
    """
    rows = sizes.draw(n, rng)
    requests = []
    for request_id, n_candidates in enumerate(rows.tolist()):
        blocks = [
            block
            for side, n_rows in ((USER, 1), (CANDIDATE, n_candidates))
            for block in _side_blocks([w for w in wanted if w.side == side], n_rows, skew, rng)
        ]
        requests.append(
            ScoreRequest(
                request_id=request_id,
                model=model,
                budget_us=budget_us,
                n_candidates=n_candidates,
                blocks=tuple(blocks),
            )
        )
    return Pool(requests=tuple(requests), rows=rows)


def _side_blocks(
    wanted: Sequence[Wanted], n: int, skew: float, rng: np.random.Generator
) -> list[Block]:
    """Return blocks of ``n`` rows: fixed numbers together by width, the others alone."""
    blocks = [_own_block(w, n, skew, rng) for w in wanted if w.is_list or w.words]
    together = [w for w in wanted if not w.is_list and not w.words]
    for width in sorted({w.width for w in together}):
        same = [w for w in together if w.width == width]
        large = any(w.n_ids > _FLOAT_IDS for w in same)
        values = np.stack([_numbers(w, (n, width), skew, rng) for w in same])
        values = np.ascontiguousarray(values if width > 1 else values[:, :, 0])
        blocks.append(
            Block(
                side=same[0].side,
                names=tuple(w.name for w in same),
                values=values.astype(np.float64 if large else np.float32),
            )
        )
    return blocks


def _numbers(
    wanted: Wanted, shape: tuple[int, ...], skew: float, rng: np.random.Generator
) -> NDArray[Any]:
    if wanted.n_ids:
        return skewed_ids(wanted.n_ids, shape, skew, rng)
    return rng.random(shape, dtype=np.float32)


def _own_block(wanted: Wanted, n: int, skew: float, rng: np.random.Generator) -> Block:
    row_splits = None
    n_values = n * wanted.width
    if wanted.is_list:
        lengths = rng.integers(0, wanted.width + 1, size=n)
        row_splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        n_values = int(row_splits[-1])
    elif wanted.width > 1:
        row_splits = np.arange(0, n_values + 1, wanted.width, dtype=np.int32)
    ids = _numbers(wanted, (n_values,), skew, rng)
    names = (wanted.name,)
    if not wanted.words:
        return Block(side=wanted.side, names=names, values=ids, row_splits=row_splits)
    words = [wanted.words[k].encode() for k in ids.tolist()]
    char_splits = np.concatenate([[0], np.cumsum([len(word) for word in words])])
    return Block(
        side=wanted.side,
        names=names,
        values=np.frombuffer(b"".join(words), dtype=np.uint8),
        row_splits=row_splits,
        char_splits=char_splits.astype(np.int32),
    )
