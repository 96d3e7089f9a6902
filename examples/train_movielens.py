"""Train the film recommender that the project ships, and write everything that the demo needs.

    pip install -e '.[train]'
    python -m examples.train_movielens --data FOLDER     # of ml-100k.inter, .item and .user

The model (``movielens/model.py``) answers: what is the probability that this user gives this film
4 or 5 stars?

The split is by time, the same moments for all users: the last tenth of the ratings is held out for
the test, the tenth before it chooses the number of epochs; then the model is trained anew on both
that tenth and all before it. Most users of the test part are new to the model, as they are to a
service that is growing. So user and film ids are often hidden in training: the model learns to do
without them. The figures are in ``MODEL.md``, which this program writes. Other seeds differ little:
with 0, 1 and 2 the AUC of the held-out part is 0.753, 0.753 and 0.757.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples.movielens.catalogue import (
    HOME,
    Film,
    read_users,
    write_expected,
    write_films,
)
from examples.movielens.dataset import (
    F32,
    HISTORY,
    LIKED_SHARE,
    Columns,
    Encoding,
    Person,
    Samples,
    auc,
    auc_per_user,
    read_films,
    read_people,
    read_samples,
)
from examples.movielens.model import Recommender, Tensors
from kernels.bundle.build import BuildOptions, build_bundle

# Chosen by the validation part. Hiding half of each history is what helps most: unhidden, it
# is a fingerprint by which the model remembers the user, and two epochs are too many.
BATCH: Final = 512
LEARNING_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 1e-4
EMBEDDING_PENALTY: Final = 0.003  # on the squared norms of the rows that a batch looks up
COMPANY: Final = 0.1  # weight of the loss of that name
HIDDEN_SHARES: Final = {
    "user_id": 0.8,
    "age": 0.1,
    "gender": 0.1,
    "occupation": 0.1,
    "item_id": 0.02,
    "history": 0.5,
}
MOST_EPOCHS: Final = 20
PATIENCE: Final = 4


def hide(batch: Tensors) -> Tensors:
    """Replace ids by the unknown one at random, entry by entry; the padding stays what it is."""
    hidden = dict(batch)
    for name, share in HIDDEN_SHARES.items():
        ids = batch[name]
        hidden[name] = ids * (torch.rand(ids.shape) >= share)
    return hidden


def train(columns: Columns, liked: F32, encoding: Encoding, seed: int) -> Iterator[Recommender]:
    """Train a model, handing it out after each epoch."""
    torch.manual_seed(seed)
    model = Recommender(encoding)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    inputs = {name: torch.from_numpy(column) for name, column in columns.items()}
    labels = torch.from_numpy(liked)
    n_films = len(encoding.item_id) + 1
    log_counts = torch.bincount(inputs["item_id"], minlength=n_films).float().log1p()
    while True:
        model.train()
        for rows in torch.randperm(len(labels)).split(BATCH):
            batch = hide({name: column[rows] for name, column in inputs.items()})
            loss = nn.functional.binary_cross_entropy(model(**batch), labels[rows])
            loss = loss + EMBEDDING_PENALTY * model.penalty(batch)
            loss = loss + COMPANY * model.company(batch, log_counts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield model.eval()


def predict(model: Recommender, columns: Columns) -> F32:
    """Return the model's scores, float32 ``[n]``."""
    inputs = [torch.from_numpy(column).split(4096) for column in columns.values()]
    with torch.no_grad():
        parts = [
            model(**dict(zip(columns, parts, strict=True))) for parts in zip(*inputs, strict=True)
        ]
    scores: F32 = torch.cat(parts).numpy()
    return scores


@attrs.frozen(kw_only=True)
class Figures:
    """How well scores tell likes from the rest: over all samples, and within each user's."""

    auc: float
    auc_per_user: float

    @classmethod
    def of(
        cls, scores: NDArray[Any], samples: Samples, for_ranking: NDArray[Any] | None = None
    ) -> Figures:
        """Judge the scores of samples, ``[n]``.

        Args:
            scores: To judge.
            samples: What they are the scores of.
            for_ranking: To judge within each user, if not the same: scores that leave out
                ``liked_share``, which is one number in any one ranking, but drifts from sample to
                sample.
        """
        ranking = scores if for_ranking is None else for_ranking
        return cls(
            auc=auc(scores, samples.liked),
            auc_per_user=auc_per_user(ranking, samples.liked, samples.person),
        )

    def __str__(self) -> str:
        return f"AUC {self.auc:.4f}, within a user {self.auc_per_user:.4f}"


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """Samples to learn from and later ones to be judged by."""

    fit: Samples
    judge: Samples
    people: Sequence[Person]
    films: Sequence[Film]

    @property
    def encoding(self) -> Encoding:
        """The vocabularies of the samples to learn from."""
        return Encoding.of(self.fit, self.people, self.films)

    def epochs(self, seed: int) -> Iterator[tuple[Recommender, Figures]]:
        """Train without end; hand out the model and its figures after each epoch."""
        encoding = self.encoding
        columns, unseen = (
            encoding.encode(samples, self.people, self.films) for samples in (self.fit, self.judge)
        )
        alike = unseen | {"liked_share": np.full_like(unseen["liked_share"], LIKED_SHARE)}
        for model in train(columns, self.fit.liked, encoding, seed):
            scores, for_ranking = predict(model, unseen), predict(model, alike)
            yield model, Figures.of(scores, self.judge, for_ranking)

    def popularity(self) -> dict[str, Figures]:
        """Judge what the popularity of films does, from the samples to learn from.

        The share of a film's ratings that are likes (five ratings draw it half way from that of
        all films) is the stronger popularity. The strongest rule without a model adds its log-odds
        and those of the user's ``liked_share``; both have the same order within a user.
        """
        fit, film = self.fit, self.judge.film
        n_rated = np.bincount(fit.film, minlength=len(self.films))
        n_liked = np.bincount(fit.film, weights=fit.liked, minlength=len(self.films))
        share = ((n_liked + 5 * fit.liked.mean()) / (n_rated + 5))[film]
        both = _log_odds(share) + _log_odds(self.judge.liked_share)
        return {
            "popularity: number of likes": Figures.of(n_liked[film], self.judge),
            "popularity: share of likes": Figures.of(share, self.judge),
            "popularity and liked_share": Figures.of(both, self.judge, share),
        }


def _log_odds(share: NDArray[Any]) -> NDArray[Any]:
    odds: NDArray[Any] = np.log(share / (1 - share))
    return odds


def choose_epochs(task: Task, seed: int, most: int) -> int:
    """Return the number of epochs after which the model judged best."""
    best, best_epoch = 0.0, 0
    for epoch, (_, figures) in enumerate(task.epochs(seed), 1):
        print(f"epoch {epoch:2}  validation {figures}", flush=True)
        if figures.auc > best:
            best, best_epoch = figures.auc, epoch
        if epoch == most or epoch == best_epoch + PATIENCE:
            break
    return best_epoch


def export(model: Recommender, columns: Columns, path: Path) -> None:
    """Write the whole model as ONNX: raw ids in by feature name, ``score`` float32 ``[n]`` out."""
    rows = torch.export.Dim("rows")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # which packages it can do without
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        torch.onnx.export(
            model,
            kwargs={name: torch.from_numpy(column[:3]) for name, column in columns.items()},
            f=path,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=list(columns),
            output_names=["score"],
            dynamic_shapes={name: {0: rows} for name in columns},
        )


def rank_for(
    model: Recommender, encoding: Encoding, users: Sequence[Mapping[str, Any]], task: Task
) -> F32:
    """Return the scores of all films for a few users, float32 ``[n_users, n_films]``."""
    film_of = {film.item_id: n for n, film in enumerate(task.films)}
    people = [Person(**{key: user[key] for key in attrs.fields_dict(Person)}) for user in users]
    scores = []
    for n, user in enumerate(users):
        history = np.full(HISTORY, -1)
        liked = [film_of[item_id] for item_id in user["history"]]
        history[: len(liked)] = liked
        every = np.arange(len(task.films))
        samples = Samples(
            person=np.full_like(every, n),
            film=every,
            history=np.tile(history, (len(every), 1)),
            liked_share=np.full(len(every), user.get("liked_share", LIKED_SHARE), np.float32),
            liked=np.zeros(len(every), np.float32),
            time=every,
        )
        scores.append(predict(model, encoding.encode(samples, people, task.films)))
    return np.stack(scores)


def write_demo(model: Recommender, task: Task, folder: Path) -> None:
    """Write the bundle, the films, and the scores that torch gives for the demo's users."""
    encoding = task.encoding
    columns = encoding.encode(task.fit, task.people, task.films)
    with tempfile.TemporaryDirectory() as temporary:
        onnx = Path(temporary) / "movielens.onnx"
        export(model, columns, onnx)
        spec = encoding.write(Path(temporary))
        build_bundle(onnx, spec, folder / "bundle", BuildOptions(force=True))
    write_films(task.films, folder)
    write_expected(rank_for(model, encoding, read_users(folder), task), folder)


def main() -> None:
    """Train, judge, write."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    films, people = read_films(arguments.data), read_people(arguments.data)
    samples = read_samples(arguments.data, people, films)
    first, second = (samples.time[len(samples.time) * tenths // 10] for tenths in (8, 9))
    early, middle = samples.time < first, (samples.time >= first) & (samples.time < second)
    late = samples.time >= second
    choosing = Task(fit=samples[early], judge=samples[middle], people=people, films=films)
    final = Task(fit=samples[early | middle], judge=samples[late], people=people, films=films)

    n_epochs = choose_epochs(choosing, arguments.seed, arguments.most_epochs)
    model, figures = next(itertools.islice(final.epochs(arguments.seed), n_epochs - 1, None))
    rows = {"this model": figures} | final.popularity()
    print(f"\nheld-out tenth, after {n_epochs} epochs:")
    for name, row in rows.items():
        print(f"  {name:28} {row}")
    if arguments.judge_only:
        return
    write_demo(model, final, arguments.out)
    (arguments.out / "MODEL.md").write_text(_card(final, rows, n_epochs, arguments.seed), "utf-8")
    size = sum(file.stat().st_size for file in (arguments.out / "bundle").rglob("*"))
    print(f"wrote {arguments.out} (bundle {size / 1e6:.1f} MB)", end=" ")
    print(f"in {time.perf_counter() - started:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the film recommender of the demo.")
    parser.add_argument("--data", type=Path, required=True, help="folder of ml-100k.inter etc.")
    parser.add_argument(
        "--out", type=Path, default=HOME, help="has users.toml; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-epochs", type=int, default=MOST_EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--judge-only", action="store_true", help="train and judge, write nothing")
    return parser.parse_args()


def _card(task: Task, rows: Mapping[str, Figures], n_epochs: int, seed: int) -> str:
    table = "\n".join(
        f"| {name} | {row.auc:.4f} | {row.auc_per_user:.4f} |" for name, row in rows.items()
    )
    new = ~np.isin(task.judge.person, task.fit.person)
    first = datetime.datetime.fromtimestamp(int(task.judge.time[0]), datetime.UTC)
    return _CARD.format(
        n_fit=len(task.fit.time),
        n_judge=len(task.judge.time),
        first=f"{first:%Y-%m-%d %H:%M:%S} UTC",
        new=new.mean(),
        table=table,
        n_epochs=n_epochs,
        seed=seed,
    )


_CARD: Final = """\
# The film recommender of the demo

Predicts the probability that a user gives a film 4 or 5 stars. Written by
`python -m examples.train_movielens --seed {seed}`, as everything in this folder but `users.toml`,
`features.toml` and `cluster.toml`; those programs and files say what the model is.

Data: MovieLens 100k. Split by time at {first}: {n_fit} earlier ratings to train on
({n_epochs} epochs, a number chosen on the last ninth of them), {n_judge} later ones held out;
{new:.0%} of these are by users whom the model has never seen. On the held-out part:

| | AUC | AUC within a user |
| --- | --- | --- |
{table}

The popularities are those of the same training part; `liked_share` is the share of likes in what
the user had rated before, a feature of the model too, and tells users apart (some like most of what
they rate). "Within a user" is the mean AUC of each user's own ratings, weighted by their number,
with `liked_share` held still: it is one number in any one ranking.

The bundle holds no ratings: embeddings, weights, and vocabularies of ids, genres and occupations.
The users of the demo are made up.

MovieLens is described in F. Maxwell Harper and Joseph A. Konstan, "The MovieLens Datasets: History
and Context", ACM Transactions on Interactive Intelligent Systems 5, 4 (2015), article 19,
https://doi.org/10.1145/2827872. The data set is free for research; see its licence before other
use of what is derived from it. GroupLens and the University of Minnesota do not endorse this
model.
"""


if __name__ == "__main__":
    main()
