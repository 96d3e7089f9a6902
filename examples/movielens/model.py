"""The recommender: a small deep interest network (Zhou et al. 2018, section 4.3).

The candidate film attends to the films that the user liked last; what it finds there, the
candidate, its year and genres, and what is known of the user go through two hidden layers.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

from examples.movielens.dataset import AGES, GENDERS, HISTORY, YEARS, Encoding

Tensors = dict[str, torch.Tensor]

# Chosen by the validation part of the data.
DIM: Final = 32  # of users, films and genres
SMALL: Final = 8  # of what has few values
HIDDEN: Final = 64
DROPOUT: Final = 0.3
SHARPNESS: Final = 5.0  # of the softmax in ``company``


class Recommender(nn.Module):  # type: ignore[misc]
    """Ids to the probability of a like. Id 0 is unknown, or padding in lists."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.user = nn.Embedding(len(encoding.user_id) + 1, DIM)
        self.film = nn.Embedding(len(encoding.item_id) + 1, DIM)
        self.appeal = nn.Embedding(len(encoding.item_id) + 1, 1)  # of a film to everybody
        self.genre = nn.Embedding(len(encoding.genres) + 1, DIM)
        self.age = nn.Embedding(len(AGES) + 1, SMALL)
        self.gender = nn.Embedding(len(GENDERS) + 1, SMALL)
        self.occupation = nn.Embedding(len(encoding.occupation) + 1, SMALL)
        self.year = nn.Embedding(len(YEARS) + 1, SMALL)
        # DIN's activation unit is a layer over [h, c, h - c, h * c]. As linear maps of h - c are
        # those of h and c, three maps say the same, and the first needs no candidate.
        self.of_history = nn.Linear(DIM, 32)
        self.of_candidate = nn.Linear(DIM, 32, bias=False)
        self.of_both = nn.Linear(DIM, 32, bias=False)
        self.attention = nn.Linear(32, 1)
        self.weight_of_likeness = nn.Parameter(torch.tensor(2.0))
        self.layers = nn.Sequential(
            nn.Linear(5 * DIM + 4 * SMALL + 1, HIDDEN),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN, 32),
            nn.ReLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(32, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.05)

    def forward(
        self,
        user_id: torch.Tensor,
        age: torch.Tensor,
        gender: torch.Tensor,
        occupation: torch.Tensor,
        liked_share: torch.Tensor,
        history: torch.Tensor,
        item_id: torch.Tensor,
        year: torch.Tensor,
        genres: torch.Tensor,
    ) -> torch.Tensor:
        """Return the probabilities, float32 ``[n]``.

        All are int64 ``[n]``, but liked_share float32 ``[n]``, history int64 ``[n, HISTORY]`` and
        genres int64 ``[n, GENRES]``.
        """
        film = self.film(item_id)
        interest = self.interest(history, film)
        known_genres = (genres != 0).unsqueeze(-1).float()
        features = (
            film,
            (self.genre(genres) * known_genres).sum(1),
            self.year(year),
            interest,
            interest * film,
            self.user(user_id),
            self.age(age),
            self.gender(gender),
            self.occupation(occupation),
            liked_share.unsqueeze(-1),
        )
        logits = self.layers(torch.cat(features, -1)) + self.appeal(item_id)
        likeness = (interest * film).sum(-1)
        return torch.sigmoid(logits.squeeze(-1) + self.weight_of_likeness * likeness)

    def interest(self, history: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
        """Return the history's embeddings, weighed by what each has to do with the film."""
        liked = self.film(history)
        candidate = film.unsqueeze(1)
        found = self.of_history(liked) + self.of_candidate(candidate)
        found = torch.relu(found + self.of_both(liked * candidate))
        logits = self.attention(found)
        is_film = (history != 0).unsqueeze(-1)
        # -1e4 and not -inf: a history without films gives zeros, in half precision too.
        weights = torch.softmax(torch.where(is_film, logits, -1e4), 1) * is_film.float()
        return (weights * liked).sum(1)

    def penalty(self, batch: Tensors) -> torch.Tensor:
        """Return the squared norm of the embeddings that a sample looks up, on average."""
        norms = sum(
            table(batch[name]).square().sum(-1).mean()
            for name, table in (
                ("user_id", self.user),
                ("item_id", self.film),
                ("year", self.year),
                ("age", self.age),
                ("occupation", self.occupation),
            )
        )
        norms = norms + self.genre(batch["genres"]).square().sum((1, 2)).mean()
        return norms + self.film(batch["history"]).square().sum((1, 2)).mean() / HISTORY

    def company(self, batch: Tensors, log_counts: torch.Tensor) -> torch.Tensor:
        """Return how badly histories tell which of the batch's films is rated next.

        A softmax over the films of the batch, corrected for how often each film is among them
        (Yi et al. 2019, section 3). It lays films that the same people watch close together, which
        labels alone are too few to do.

        Args:
            batch: The model's inputs, by name.
            log_counts: float32 ``[n_films + 1]``: log of one more than each film's ratings.
        """
        is_film = (batch["history"] != 0).unsqueeze(-1).float()
        usable = is_film.any(1).squeeze(-1) & (batch["item_id"] != 0)
        is_film, film = is_film[usable], batch["item_id"][usable]
        history = (self.film(batch["history"][usable]) * is_film).sum(1) / is_film.sum(1).sqrt()
        logits = SHARPNESS * history @ self.film(film).T - log_counts[film]
        itself = torch.eye(len(film), dtype=torch.bool)
        again = (film.unsqueeze(0) == film.unsqueeze(1)) & ~itself
        target = torch.arange(len(film))
        return nn.functional.cross_entropy(torch.where(again, -1e4, logits), target)
