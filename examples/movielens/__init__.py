"""The film recommender that the project ships: its bundle, its films, a few users to try it on.

``MODEL.md`` says what it is and how good it is; ``examples/train_movielens.py`` repeats it.
"""
