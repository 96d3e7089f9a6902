"""MovieLens 100k as samples to train on, and how raw features become ids.

The data are the "atomic files" of RecBole, tab-separated with a header line of ``name:type``:
``ml-100k.inter`` (user_id, item_id, rating, timestamp), ``ml-100k.item`` (item_id, movie_title,
release_year, class) and ``ml-100k.user`` (user_id, age, gender, occupation, ...).

A *sample* is one rating: what was known of user and film at that moment, and whether the user
liked the film (4 or 5 stars). Of a user's earlier ratings only those of an earlier second count:
MovieLens users rate a page of films at once, and what they rate together they cannot have known.
"""

from __future__ import annotations

import csv
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from examples.movielens.catalogue import Film

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]

SPEC: Final = Path(__file__).with_name("features.toml")
_FEATURES: Final = tomllib.loads(SPEC.read_text(encoding="utf-8"))["features"]
HISTORY: Final[int] = _FEATURES["history"]["max_length"]
GENRES: Final[int] = _FEATURES["genres"]["max_length"]
AGES: Final[list[int]] = _FEATURES["age"]["boundaries"]
YEARS: Final[list[int]] = _FEATURES["year"]["boundaries"]
GENDERS: Final = ("F", "M")
LIKED_SHARE: Final[float] = _FEATURES["liked_share"]["missing"]
_LIKED_WEIGHT: Final = 10  # so many ratings draw a user's share half way from LIKED_SHARE
_FEWEST_RATINGS: Final = 20  # of a film with an id of its own
_ARTICLE: Final = re.compile(r"(.*), (The|An|A)( \(.*\))?$")


@attrs.frozen(kw_only=True)
class Person:
    """A user."""

    user_id: str
    age: int
    gender: str
    occupation: str


@attrs.frozen(kw_only=True, eq=False)
class Samples:
    """Ratings in order of time.

    Attributes:
        person: int64 ``[n]``, index into the people.
        film: int64 ``[n]``, index into the films.
        history: int64 ``[n, HISTORY]``, indices of the films that the user had liked last, the
            latest last, then -1.
        liked_share: float32 ``[n]``, share of the user's earlier ratings that were likes.
        liked: float32 ``[n]``, the label.
        time: int64 ``[n]``, in seconds.
    """

    person: I64
    film: I64
    history: I64
    liked_share: F32
    liked: F32
    time: I64

    def __getitem__(self, where: NDArray[Any]) -> Samples:
        fields = attrs.asdict(self, recurse=False)
        return Samples(**{name: column[where] for name, column in fields.items()})


def read_films(folder: Path) -> list[Film]:
    """Read ``ml-100k.item``."""
    return [
        Film(
            item_id=item_id,
            title=_ARTICLE.sub(r"\2 \1\3", title),
            year=int(year) if year.isdigit() else 0,
            genres=tuple(genre for genre in genres.split() if genre != "unknown"),
        )
        for item_id, title, year, genres in _rows(folder / "ml-100k.item")
    ]


def read_people(folder: Path) -> list[Person]:
    """Read ``ml-100k.user``."""
    return [
        Person(user_id=user_id, age=int(age), gender=gender, occupation=occupation)
        for user_id, age, gender, occupation, *_ in _rows(folder / "ml-100k.user")
    ]


def read_samples(folder: Path, people: Sequence[Person], films: Sequence[Film]) -> Samples:
    """Read ``ml-100k.inter``, in order of time."""
    person_of = {person.user_id: n for n, person in enumerate(people)}
    film_of = {film.item_id: n for n, film in enumerate(films)}
    rows = np.array(
        [
            (int(float(time)), person_of[user_id], film_of[item_id], float(rating) >= 4)
            for user_id, item_id, rating, time in _rows(folder / "ml-100k.inter")
        ],
        np.int64,
    )
    time, person, film, liked = rows[np.lexsort(rows.T[2::-1])].T
    history = np.full((len(rows), HISTORY), -1)
    share = np.empty(len(rows), np.float32)
    for n in range(len(people)):
        mine = np.flatnonzero(person == n)
        n_earlier = np.searchsorted(time[mine], time[mine])
        for row, end in zip(mine, n_earlier, strict=True):
            earlier = mine[:end]
            likes = film[earlier[liked[earlier] == 1]]
            share[row] = liked_share(len(likes), end)
            last = likes[-HISTORY:]
            history[row, : len(last)] = last
    return Samples(
        person=person,
        film=film,
        history=history,
        liked_share=share,
        liked=liked.astype(np.float32),
        time=time,
    )


def liked_share(n_liked: int, n_rated: int) -> float:
    """Return the feature ``liked_share``: a share that few ratings hardly move."""
    return (n_liked + LIKED_SHARE * _LIKED_WEIGHT) / (n_rated + _LIKED_WEIGHT)


def _rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


@attrs.frozen(kw_only=True)
class Encoding:
    """The vocabularies, from the samples trained on; id 0 is any other value.

    Films with few ratings are left out: the model would take the taste of a handful of people for
    the film's appeal, and rank it first for everybody. Their year and genres speak for them.
    """

    user_id: tuple[str, ...]
    item_id: tuple[str, ...]
    occupation: tuple[str, ...]
    genres: tuple[str, ...]

    @classmethod
    def of(cls, samples: Samples, people: Sequence[Person], films: Sequence[Film]) -> Encoding:
        """Take the users and films of some samples."""
        known_people = [people[n] for n in np.unique(samples.person)]
        n_ratings = np.bincount(samples.film)
        known_films = [films[n] for n in np.flatnonzero(n_ratings >= _FEWEST_RATINGS).tolist()]
        return cls(
            user_id=tuple(person.user_id for person in known_people),
            item_id=tuple(film.item_id for film in known_films),
            occupation=tuple(sorted({person.occupation for person in known_people})),
            genres=tuple(sorted({genre for film in known_films for genre in film.genres})),
        )

    def encode(self, samples: Samples, people: Sequence[Person], films: Sequence[Film]) -> Columns:
        """Return the model's inputs: int64 ``[n]`` or ``[n, width]``, liked_share float32."""
        item_id = _ids(self.item_id, [film.item_id for film in films])
        genres = np.zeros((len(films), GENRES), np.int64)
        for row, film in zip(genres, films, strict=True):
            row[: len(film.genres)] = _ids(self.genres, film.genres)
        user_side = {
            "user_id": _ids(self.user_id, [person.user_id for person in people]),
            "age": np.searchsorted(AGES, [person.age for person in people], "right"),
            "gender": _ids(GENDERS, [person.gender for person in people]),
            "occupation": _ids(self.occupation, [person.occupation for person in people]),
        }
        candidate_side = {
            "item_id": item_id,
            "year": np.searchsorted(YEARS, [film.year for film in films], "right"),
            "genres": genres,
        }
        none_last = np.append(item_id, 0)  # where -1 finds the padding
        return {
            **{name: ids[samples.person] for name, ids in user_side.items()},
            "liked_share": samples.liked_share,
            "history": none_last[samples.history],
            **{name: ids[samples.film] for name, ids in candidate_side.items()},
        }

    def write(self, folder: Path) -> Path:
        """Write the vocabulary files and ``features.toml`` beside them; return its path."""
        for name, values in (attrs.asdict(self) | {"gender": GENDERS}).items():
            (folder / f"{name}.txt").write_text("\n".join(values) + "\n", encoding="utf-8")
        return Path(shutil.copy(SPEC, folder))


def _ids(vocabulary: Sequence[str], values: Sequence[str]) -> I64:
    ids: Mapping[str, int] = {value: n for n, value in enumerate(vocabulary, 1)}
    return np.array([ids.get(value, 0) for value in values], np.int64)


def auc(scores: NDArray[Any], liked: F32) -> float:
    """Return the area under the ROC curve: the Mann-Whitney statistic, ties counting half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n_liked = int(liked.sum())
    n_pairs = n_liked * (len(liked) - n_liked)
    return float((ranks[liked == 1].sum() - n_liked * (n_liked + 1) / 2) / n_pairs)


def auc_per_user(scores: NDArray[Any], liked: F32, person: I64) -> float:
    """Return the mean AUC within one user's samples, weighted by their number.

    Users who liked all or none have no AUC and are left out (Zhu et al. 2017, GAUC).
    """
    found = [
        (auc(scores[mine], liked[mine]), int(mine.sum()))
        for mine in (person == n for n in np.unique(person))
        if 0 < liked[mine].sum() < mine.sum()
    ]
    values, weights = zip(*found, strict=True)
    return float(np.average(values, weights=weights))
