"""Shows what the compiler makes of a bundle: ``python -m kernels.show BUNDLE/ --bucket 512``.

Reading order: ``plan.py`` (a program with what ptxas says of its kernels, and the card's bounds),
``text.py`` (as text), ``picture.py`` (as SVG), ``graphs.py`` (the graph, and what each pass made of
it).
"""
