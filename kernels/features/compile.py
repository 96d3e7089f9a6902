"""Compiles layouts: checks names and types once, and groups features into steps.

What can be wrong with names and types is found here; what can be wrong with values, in the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.errors import FeatureError
from kernels.features.encode import Ids, Keys
from kernels.features.faults import CANDIDATE, USER, Mask
from kernels.features.feature import LIST_KINDS, Encoder, Feature, FeatureSpec, Numeric
from kernels.features.gather import Form, FormKey
from kernels.features.layout import SIDES, Layout
from kernels.features.numbers import Numbers
from kernels.features.steps import (
    BucketMemberStep,
    CrossStep,
    FillStep,
    FixedStep,
    HashSource,
    Index,
    ListStep,
    MemberStep,
    Step,
    TextStep,
    index_of,
)
from kernels.features.vocabulary import VocabularyIndex

_NUMBER_KINDS: Final = frozenset("?bBhHiIlLqQefd")
_BYTE_KINDS: Final = frozenset("B")
# Encoders that take numbers as they are.
_AS_NUMBERS: Final = ("identity", "key")


@attrs.frozen(kw_only=True, eq=False)
class Plan:
    """What the layouts of one parser share.

    Attributes:
        wanted: Features whose columns are wanted; of the others, only names and types are checked.
        first: First row of each wanted feature in its side's matrix of ids or numbers.
        n_ids: Rows of each side's matrix of ids; ``n_numbers`` of the other.
        index: All vocabularies; ``vocabulary`` says which number each file has.
    """

    spec: FeatureSpec
    wanted: tuple[Feature, ...]
    first: Mapping[str, int]
    n_ids: Mapping[int, int]
    n_numbers: Mapping[int, int]
    index: VocabularyIndex
    vocabulary: Mapping[str, int]

    @classmethod
    def of(cls, spec: FeatureSpec, names: Sequence[str]) -> Plan:
        """Give each feature in ``names`` its places, in that order; and those that these read."""
        wanted = {name: spec.by_name[name] for name in names}
        for feature in list(wanted.values()):
            wanted.update((name, spec.by_name[name]) for name in feature.of)
        first: dict[str, int] = {}
        counts = {(side, dtype): 0 for side in SIDES for dtype in ("int64", "float32")}
        for feature in wanted.values():
            first[feature.name] = counts[feature.side, feature.dtype]
            counts[feature.side, feature.dtype] += feature.width
        return cls(
            spec=spec,
            wanted=tuple(wanted.values()),
            first=first,
            n_ids={k: counts[side, "int64"] for k, side in enumerate(SIDES)},
            n_numbers={k: counts[side, "float32"] for k, side in enumerate(SIDES)},
            index=VocabularyIndex(list(spec.vocabularies.values())),
            vocabulary={file: k for k, file in enumerate(spec.vocabularies)},
        )

    def rows(self, features: Sequence[Feature]) -> Index:
        """Return the rows of some features in their matrix."""
        return index_of(
            [self.first[f.name] + column for f in features for column in range(f.width)]
        )

    def ids(self, features: Sequence[Feature]) -> Ids | Keys:
        """Return the encoders of all columns of some features: all of them keys, or none."""
        encoders = [_encoder(f) for f in features for _ in range(f.width)]
        if features[0].keyed:
            return Keys(encoders)
        which = [self.vocabulary.get(e.vocabulary or "", 0) for e in encoders]
        return Ids(encoders, self.index, which)


@attrs.frozen(eq=False)
class _Sent:
    """Where a layout has a feature: a block, and rows of its matrix."""

    feature: Feature
    block: int
    rows: range


def compile_layout(plan: Plan, keys: Sequence[FormKey]) -> Layout:
    """Decide how requests with blocks of these forms are parsed.

    Raises:
        FeatureError: No request with these names and types is right.
    """
    forms, sent = _read_forms(plan.spec, keys)
    absent = [f for f in plan.wanted if f.sent and f.name not in sent and not _optional(f)]
    for feature in absent:
        if feature.side == "user":
            raise FeatureError(feature.name, "is missing, and has no default")
    return Layout(
        spec=plan.spec,
        forms=forms,
        n_ids=plan.n_ids,
        n_numbers=plan.n_numbers,
        absent=FeatureError(absent[0].name, "is missing, and has no default") if absent else None,
        steps={side: _Steps(plan, side, forms, sent).steps for side in (USER, CANDIDATE)},
        crosses=[
            CrossStep(feature=feature, place=plan.rows([feature]))
            for feature in plan.wanted
            if feature.kind == "cross"
        ],
    )


def _optional(feature: Feature) -> bool:
    if feature.numeric is not None:
        return feature.numeric.missing is not None
    return _encoder(feature).missing != "error"


def _read_forms(spec: FeatureSpec, keys: Sequence[FormKey]) -> tuple[list[Form], dict[str, _Sent]]:
    """Check names and types against the spec."""
    forms: list[Form] = []
    sent: dict[str, _Sent] = {}
    for side, names, kind, ndim, width, ragged, text in keys:
        if side not in (USER, CANDIDATE):
            raise FeatureError("blocks", f"side {side!r}: want {USER} (user) or {CANDIDATE}")
        splits = ragged or text
        if (ndim != 1 or len(names) != 1) if splits else ndim not in (2, 3):
            want = "one name and values [n]" if splits else "values [n_names, n] or [n_names, n, w]"
            raise FeatureError(
                names[0] if names else "blocks",
                f"want {want}, got {len(names)} names and {ndim} dimensions",
            )
        width = width if ndim == 3 else 1
        each = None
        for position, name in enumerate(names):
            feature = _feature(spec, name, side)
            if name in sent:
                raise FeatureError(name, "is there twice")
            each = _check_type(feature, kind, width, ragged=ragged, text=text)
            rows = range(each) if ragged and each else range(width)
            offset = position * width
            rows = range(offset, offset + len(rows))
            sent[name] = _Sent(feature, len(forms), rows)
        forms.append(Form(side=side, names=names, ndim=ndim, ragged=ragged, text=text, each=each))
    return forms, sent


def _feature(spec: FeatureSpec, name: str, side: int) -> Feature:
    feature = spec.by_name.get(name)
    if feature is None:
        raise FeatureError(name, "the model has no such feature")
    if not feature.sent:
        raise FeatureError(name, f"is not sent, but computed from {', '.join(feature.of)}")
    if feature.side != SIDES[side]:
        raise FeatureError(name, f"is a {feature.side} feature, sent as a {SIDES[side]} one")
    return feature


def _check_type(feature: Feature, kind: str, width: int, *, ragged: bool, text: bool) -> int | None:
    """Check a block's type against one feature.

    Returns:
        How many entries each row must have, if its rows are split; None for lists.
    """
    name = feature.name
    if kind not in (_BYTE_KINDS if text else _NUMBER_KINDS):
        got = np.dtype(kind).name
        raise FeatureError(name, f"want {'text as uint8' if text else 'numbers'}, got {got}")
    if text and (feature.encoder is None or feature.encoder.encode == "identity"):
        raise FeatureError(name, "want numbers, got text")
    if feature.kind in LIST_KINDS:
        return None
    if not ragged and feature.width != width:
        raise FeatureError(name, f"want {feature.width} values in each row, got {width}")
    return feature.width


class _Steps:
    """Groups one side's wanted features into steps, in an order that respects what reads what."""

    def __init__(
        self, plan: Plan, side: int, forms: Sequence[Form], sent: Mapping[str, _Sent]
    ) -> None:
        self._plan = plan
        self._side = side
        self._forms = forms
        self.steps: list[Step] = []
        fixed: dict[tuple[int, str], list[_Sent]] = {}
        texts: list[_Sent] = []
        text_keys: list[_Sent] = []
        absent: list[Feature] = []
        for feature in plan.wanted:  # in the order of their places
            if feature.side != SIDES[side] or not feature.sent:
                continue
            where = sent.get(feature.name)
            if feature.kind in LIST_KINDS:
                self.steps.append(self._list(feature, where))
            elif where is None:
                absent.append(feature)
            elif feature.numeric is not None:
                fixed.setdefault((where.block, feature.numeric.transform), []).append(where)
            elif feature.keyed and forms[where.block].text:
                text_keys.append(where)
            elif _encoder(feature).encode in _AS_NUMBERS:
                fixed.setdefault((where.block, _encoder(feature).encode), []).append(where)
            else:
                texts.append(where)
        self.steps += [self._fixed(block, what, group) for (block, what), group in fixed.items()]
        self.steps += [self._texts(group) for group in (texts, text_keys) if group]
        if absent:
            self.steps.append(self._fill(absent))
        self._hash_members(sent)

    def _fixed(self, block: int, what: str, group: Sequence[_Sent]) -> FixedStep:
        features = [sent.feature for sent in group]
        return FixedStep(
            side=self._side,
            block=block,
            source=index_of([row for sent in group for row in sent.rows]),
            places=self._plan.rows(features),
            fields=[f.name for f in features for _ in range(f.width)],
            encoder=(
                self._plan.ids(features)
                if what in _AS_NUMBERS
                else Numbers([_numeric(f) for f in features for _ in range(f.width)])
            ),
            buckets=what == "bucketise",
        )

    def _texts(self, group: Sequence[_Sent]) -> TextStep:
        features = [sent.feature for sent in group]
        members = self._plan.spec.members
        first, starts = 0, {}
        for feature in features:
            starts[feature.name] = first
            first += feature.width
        return TextStep(
            side=self._side,
            sources=[
                HashSource(
                    block=sent.block,
                    source=None if self._forms[sent.block].text else index_of(sent.rows),
                    width=sent.feature.width,
                    fields=[sent.feature.name] * sent.feature.width,
                )
                for sent in group
            ],
            places=self._plan.rows(features),
            encoder=self._plan.ids(features),
            members=[(name, start) for name, start in starts.items() if name in members],
        )

    def _list(self, feature: Feature, sent: _Sent | None) -> ListStep:
        split = sent is not None and (
            self._forms[sent.block].ragged or self._forms[sent.block].text
        )
        return ListStep(
            side=self._side,
            feature=feature,
            block=None if sent is None else sent.block,
            source=None if sent is None or split else index_of(sent.rows),
            encoder=self._plan.ids([attrs.evolve(feature, width=1)]),
            places=self._plan.rows([feature]),
            derived=[
                (each, self._plan.rows([each]))
                for each in self._plan.wanted
                if each.of == (feature.name,)
            ],
        )

    def _fill(self, absent: Sequence[Feature]) -> FillStep:
        """Defaults for what was not sent; where there is none, there are no rows either."""
        with_ids = [f for f in absent if f.dtype == "int64"]
        with_numbers = [f for f in absent if f.dtype == "float32"]
        return FillStep(
            ids=np.array([_default(f) for f in with_ids for _ in range(f.width)], np.int64),
            id_places=self._plan.rows(with_ids),
            numbers=np.array(
                [_default(f) for f in with_numbers for _ in range(f.width)], np.float32
            ),
            number_places=self._plan.rows(with_numbers),
            members=[f.name for f in absent if f.encoder is not None],
        )

    def _hash_members(self, sent: Mapping[str, _Sent]) -> None:
        """Add hashes of the crosses' members that no other step has."""
        for feature in self._plan.wanted:
            if feature.name not in self._plan.spec.members or feature.side != SIDES[self._side]:
                continue
            if feature.kind in LIST_KINDS:
                continue  # a member of its length or mask
            if feature.numeric is not None:
                place = self._plan.first[feature.name]
                self.steps.append(BucketMemberStep(place=place, name=feature.name))
            elif _encoder(feature).encode in _AS_NUMBERS and feature.name in sent:
                where = sent[feature.name]
                if self._forms[where.block].text:
                    continue  # its own step has them
                rows = index_of(where.rows)
                self.steps.append(MemberStep(block=where.block, source=rows, name=feature.name))


def _default(feature: Feature) -> float:
    """Return what stands for a value that was not sent: as if NaN had been."""
    if feature.numeric is None:
        missing = _encoder(feature).missing
        return missing if isinstance(missing, int) else 0
    numbers, nan = Numbers([feature.numeric]), np.full((1, 1), np.nan)
    filled = numbers.floats if feature.ids is None else numbers.buckets
    return float(filled(nan, _unheard)[0, 0])


def _unheard(wrong: Mask, problem: Callable[[int, int], str]) -> None:
    """Report nothing: ``compile_layout`` has seen that there is no default."""


def _encoder(feature: Feature) -> Encoder:
    assert feature.encoder is not None, feature
    return feature.encoder


def _numeric(feature: Feature) -> Numeric:
    assert feature.numeric is not None, feature
    return feature.numeric
