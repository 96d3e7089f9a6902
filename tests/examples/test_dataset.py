from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.movielens.catalogue import HOME, Film, read_films, read_users, write_films
from examples.movielens.dataset import (
    GENDERS,
    HISTORY,
    Columns,
    Encoding,
    Person,
    Samples,
    auc,
    auc_per_user,
    liked_share,
    read_people,
    read_samples,
)
from examples.movielens.dataset import read_films as read_raw_films
from kernels.bundle.load import load_bundle
from kernels.bundle.manifest import SideLayout
from kernels.features.blocks import RawRequest
from kernels.features.parser import Parser
from transport.columns import blocks_from_columns
from transport.messages import CANDIDATE, USER


def write_ratings(folder: Path, ratings: list[tuple[int, int, int, int]]) -> None:
    """Write the three files; ``ratings`` are (user, film, stars, time)."""
    (folder / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join("\t".join(map(str, rating)) + "\n" for rating in ratings)
    )
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Comedy\n"
        "2\tAffair to Remember, An\t1957\tRomance\n"
        "3\tPostino, Il\t\tunknown\n"
        "4\tSaint, The (Svyatoy)\t1997\tAction\n"
    )
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "7\t24\tM\twriter\t85711\n"
        "8\t53\tF\tother\t94043\n"
    )


def read(folder: Path) -> tuple[Samples, list[Person], list[Film]]:
    people, films = read_people(folder), read_raw_films(folder)
    return read_samples(folder, people, films), people, films


def test_articles_stand_before_their_titles_and_unknown_genres_and_years_are_none(
    tmp_path: Path,
) -> None:
    write_ratings(tmp_path, [(7, 1, 5, 10)])
    films = read(tmp_path)[2]
    assert [film.title for film in films] == [
        "Toy Story",
        "An Affair to Remember",
        "Postino, Il",
        "The Saint (Svyatoy)",
    ]
    assert (films[2].year, films[2].genres, str(films[2])) == (0, (), "Postino, Il")


def test_films_survive_their_file(tmp_path: Path) -> None:
    films = [
        Film(item_id="1", title="Eins, zwei", year=1961, genres=("Comedy", "War")),
        Film(item_id="2", title="Léon", year=0, genres=()),
    ]
    write_films(films, tmp_path)
    assert read_films(tmp_path) == films


def test_a_history_holds_likes_of_earlier_seconds_alone_the_latest_last(tmp_path: Path) -> None:
    ratings = [(7, 3, 5, 30), (7, 1, 4, 10), (8, 4, 5, 5), (7, 4, 3, 20), (7, 2, 5, 20)]
    write_ratings(tmp_path, [*ratings, (7, 1, 1, 40)])
    samples = read(tmp_path)[0]
    assert samples.time.tolist() == [5, 10, 20, 20, 30, 40]
    histories = [row[row >= 0].tolist() for row in samples.history]
    # Films 0 to 3: the two ratings at 20 do not see each other; film 3 was not liked there.
    assert histories == [[], [], [0], [0], [0, 1], [0, 1, 2]]
    assert samples.liked.tolist() == [1, 1, 1, 0, 1, 0]
    expected = [liked_share(*counts) for counts in ((0, 0), (0, 0), (1, 1), (1, 1), (2, 3), (3, 4))]
    np.testing.assert_allclose(samples.liked_share, expected, rtol=1e-6)


def test_a_long_history_keeps_its_latest_films(tmp_path: Path) -> None:
    write_ratings(tmp_path, [(7, 1 + n % 4, 5, n) for n in range(HISTORY + 3)])
    samples = read(tmp_path)[0]
    assert samples.history[-1].tolist() == [n % 4 for n in range(2, HISTORY + 2)]


def test_only_films_with_enough_ratings_have_an_id_of_their_own(tmp_path: Path) -> None:
    write_ratings(tmp_path, [(7, 1, 5, n) for n in range(20)] + [(8, 2, 5, n) for n in range(19)])
    samples, people, films = read(tmp_path)
    encoding = Encoding.of(samples, people, films)
    assert encoding.item_id == ("1",)
    columns = encoding.encode(samples, people, films)
    assert set(columns["item_id"][samples.film == 0]) == {1}
    assert set(columns["item_id"][samples.film == 1]) == {0}


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in pairs])
    liked = np.array([like for _, like in pairs], np.float32)
    if not 0 < liked.sum() < len(liked):
        return
    above = scores[liked == 1][:, None] - scores[liked == 0][None, :]
    assert auc(scores, liked) == pytest.approx(((above > 0) + (above == 0) / 2).mean())


def test_auc_per_user_weighs_users_by_samples_and_skips_those_without_contrast() -> None:
    scores = np.array([1, 2, 3, 9, 8, 5])
    liked = np.array([0, 1, 0, 0, 1, 1], np.float32)
    person = np.array([0, 0, 0, 1, 1, 2])
    assert auc_per_user(scores, liked, person) == pytest.approx((3 * 0.5 + 2 * 0.0) / 5)


def test_a_served_request_becomes_the_inputs_that_training_saw() -> None:
    bundle = load_bundle(HOME / "bundle")
    films = read_films()

    def lines(name: str) -> tuple[str, ...]:
        return tuple((HOME / "bundle" / name).read_text().splitlines())

    assert lines("gender.txt") == GENDERS
    encoding = Encoding(
        user_id=lines("user_id.txt"),
        item_id=lines("item_id.txt"),
        occupation=lines("occupation.txt"),
        genres=lines("genres.txt"),
    )
    user = read_users()[1] | {"user_id": encoding.user_id[3]}
    people = [Person(**{name: user[name] for name in ("user_id", "age", "gender", "occupation")})]
    index = {film.item_id: n for n, film in enumerate(films)}
    history = [index[item_id] for item_id in user["history"]]
    n = len(films)
    samples = Samples(
        person=np.zeros(n, np.int64),
        film=np.arange(n),
        history=np.tile([*history, *[-1] * (HISTORY - len(history))], (n, 1)),
        liked_share=np.full(n, user["liked_share"], np.float32),
        liked=np.zeros(n, np.float32),
        time=np.zeros(n, np.int64),
    )
    trained = encoding.encode(samples, people, films)

    features = {name: value for name, value in user.items() if name != "name"}
    candidates = {
        "item_id": [film.item_id for film in films],
        "year": [film.year for film in films],
        "genres": [film.genres for film in films],
    }
    blocks = [
        *blocks_from_columns(USER, features, 1),
        *blocks_from_columns(CANDIDATE, candidates, n),
    ]
    served = Parser.for_bundle(bundle).parse([RawRequest(n, blocks)])
    assert not served.failed
    user_row = {name: column[:1] for name, column in trained.items()}
    np.testing.assert_array_equal(served.user.ids, ids(bundle.manifest.user, user_row))
    np.testing.assert_array_equal(served.candidate.ids, ids(bundle.manifest.candidate, trained))


def ids(layout: SideLayout, columns: Columns) -> np.ndarray:
    """Return a side's matrix of ids, made of the inputs that training saw."""
    rows = []
    for source in layout.ids:
        column = columns[source.feature].reshape(len(columns[source.feature]), -1)
        rows.append(column[:, source.column] + source.add)
    return np.stack(rows)
