"""The plan of a dense graph on a card: which launches, what each computes, and their CUDA text.

``kernels.compiler`` calls it with a graph that the passes are done with. ``phases`` cuts the graph
into launches: row tiles, which run any part of a graph over some rows, and between them what has a
kernel of its own, a Linear too large for a tile (``kernels.wide``) or a sequence program
(``kernels.sequences``). For each of the three this package says what it reads and writes; of row
tiles it writes the text. What a row tile is, its values, ring and barriers, stands in
``kernels/cuda/tile*.cuh``: emitted text only calls what is defined there.

Reading order: ``phases`` (the cut); ``matrix`` (what lies in memory between launches); ``index``
and ``expression`` (text of one element); ``steps`` (what happens between barriers, and which values
share memory); ``tile`` (what is stored and what is computed where it is read), with the steps
themselves in ``tile_linear``, ``tile_rows`` and ``pairs``; ``pack`` (weights); ``tile_kernel`` (the
whole text); ``eights`` (what is e4m3, by choice), ``wide_phase`` and ``sequence_phase``; ``facts``
(for those who look at a plan).
"""
