"""Places as text: what they come to in C++ is what Python's integers give."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
from hypothesis import assume, given
from hypothesis import strategies as st

from kernels.plan.index import Index, Term, add, div, flat, mod, mul, unflat

DIMS = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@attrs.frozen
class Place:
    """A place, and what it should be for a value of ``c``."""

    index: Index
    value: Callable[[int], int]
    multiple: int  # of the values of c


def value_of(index: Index, c: int) -> int:
    """Compute a place's text; none is negative, so C++ divides as Python does."""
    if isinstance(index, int):
        return index
    found = eval(str(index).replace("/", "//"), {"__builtins__": {}}, {"c": c})
    assert isinstance(found, int)
    return found


def values_of(multiple: int) -> range:
    return range(0, 40 * multiple, multiple)


@st.composite
def places(draw: st.DrawFn) -> Place:
    """Draw a place: a term, then some arithmetic on it."""
    multiple = draw(st.sampled_from([1, 2, 3, 4, 8, 12]))
    place = Place(Term("c", 0, multiple), lambda c: c, multiple)
    for _ in range(draw(st.integers(0, 4))):
        by = draw(st.integers(1, 12))
        kind = draw(st.sampled_from(["add", "mul", "div", "mod", "twice"]))
        place = _applied(place, kind, by)
    return place


def _applied(place: Place, kind: str, by: int) -> Place:
    index, value = place.index, place.value
    if kind == "add":
        return attrs.evolve(place, index=add(index, by), value=lambda c: value(c) + by)
    if kind == "mul":
        return attrs.evolve(place, index=mul(index, by), value=lambda c: value(c) * by)
    if kind == "div":
        return attrs.evolve(place, index=div(index, by), value=lambda c: value(c) // by)
    if kind == "mod":
        return attrs.evolve(place, index=mod(index, by), value=lambda c: value(c) % by)
    return attrs.evolve(place, index=add(index, index), value=lambda c: 2 * value(c))


@given(places())
def test_text_comes_to_what_integers_do(place: Place) -> None:
    for c in values_of(place.multiple):
        assert value_of(place.index, c) == place.value(c)


@given(places())
def test_a_terms_text_is_a_multiple_of_what_it_says(place: Place) -> None:
    if isinstance(place.index, Term):
        bare = attrs.evolve(place.index, offset=0)
        assert all(value_of(bare, c) % place.index.multiple == 0 for c in values_of(place.multiple))


@given(places(), st.integers(-30, -1), st.integers(1, 12), st.booleans())
def test_a_place_further_ahead_divides_where_it_is_not_negative(
    place: Place, offset: int, by: int, quotient: bool
) -> None:
    cs = [c for c in values_of(place.multiple) if place.value(c) + offset >= 0]
    assume(cs)
    moved = add(place.index, offset)
    result = div(moved, by) if quotient else mod(moved, by)
    for c in cs:
        exact = place.value(c) + offset
        assert value_of(result, c) == (exact // by if quotient else exact % by)


@given(DIMS, places())
def test_flat_is_the_inverse_of_unflat(dims: list[int], place: Place) -> None:
    total = math.prod(dims)
    at = unflat(place.index, dims)
    back = flat(at, dims)
    for c in values_of(place.multiple):
        exact = place.value(c)
        if exact < total:
            assert value_of(back, c) == exact
            expected = [
                exact // math.prod(dims[position + 1 :]) % dim for position, dim in enumerate(dims)
            ]
            assert [value_of(each, c) for each in at] == expected


@given(DIMS, st.data())
def test_numbers_stay_numbers(dims: list[int], data: st.DataObject) -> None:
    at = tuple(data.draw(st.integers(0, dim - 1)) for dim in dims)
    place = flat(at, dims)
    assert isinstance(place, int)
    assert unflat(place, dims) == at


def test_eight_neighbours_keep_one_term_through_a_reshape() -> None:
    at = [unflat(Term("c", j, 8), (4, 16)) for j in range(8)]
    assert {str(each[0]) for each in at} == {"(c / 16)"}
    assert [each[1] for each in at] == [Term("(c % 16)", j, 8) for j in range(8)]
    places = [flat(each, (4, 16)) for each in at]
    assert len({each.text for each in places if isinstance(each, Term)}) == 1
    assert [each.multiple for each in places if isinstance(each, Term)] == [8] * 8


def test_a_dimension_of_one_has_the_coordinate_zero() -> None:
    assert unflat(Term("c"), (1, 5, 1)) == (0, Term("c"), 0)
    assert flat((0, Term("c"), 0), (1, 5, 1)) == Term("c")
