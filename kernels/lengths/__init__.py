"""Shorter sequences: which steps of a dense graph's inputs a batch can do without.

A sequence has room for so many steps, and most requests fill a few. Models mask the rest out; then
a program may be compiled for fewer steps, and a batch whose longest sequence is as short is staged,
copied and computed with so many. That is done only where it is proven of the graph: that no value
of a step past a batch's longest sequence can change a score.

*What is assumed of a batch* at length l: past l steps, each value of a *mark* (a mask that the
graph reads, one column a step) is what masks a step out, 0 or 1. Whoever stages a batch finds its
length so, from the marks alone (``columns.py``).

*What is proven* (``walk.py``, by the rules of ``rules.py``): each value with an axis of steps has a
*tail*, what is known of its elements past l (``kinds.py``). Marks give numbers, and ops take these
on: a WHERE picks a branch, a product with 0 is 0, a SOFTMAX over scores of which the tail's are
hopelessly low gives 0. An axis may be summed up, or multiplied away by a MATMUL, where the tail is
0. What does otherwise with an axis (lays steps side by side for a Linear, takes the last one,
attends without a mask) needs every step: the inputs that lead there keep their whole length, and
the proof begins again without them.

*Numbers.* Values are taken to be finite, and those that no mask has entered to lie within 4,000,
far from the -10,000 or less that masks put scores at, as a model with such a mask assumes of
itself.

*Rows without a step.* A SOFTMAX over steps that are all masked out gives each an n-th, of all that
there are: where there is one, such a row needs them all. But if its steps are alike, as padding is,
the n-ths of one vector come to that vector whatever n. Where that, too, is proven of the graph, and
seen of the row, it needs no more steps than others.

``find.py`` chooses the inputs and marks to begin with; ``bind.py`` makes of the graph, in which
``Steps`` now stand for the axes, that of one length; ``side.py`` does so of a bundle's manifest.
Read ``columns``, ``kinds``, ``values``, ``rules``, ``walk``, ``find``, ``bind``, ``side``.
"""
