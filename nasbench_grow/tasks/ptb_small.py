"""Penn Treebank as Zaremba et al. train their network of 200 units, which is not regularised."""

from __future__ import annotations

from nasbench_grow.data.language_modelling import SMALL, SMALL_SEQUENCE
from nasbench_grow.tasks.ptb import PennTreebank


class SmallPennTreebank(PennTreebank):
    """The texts of ``ptb``, in sequences of 20 words, with the recipe for the small network."""

    name = "ptb_small"
    summary = "Penn Treebank with the recipe for small networks (lstm_200): 20 words a sequence"
    sequence = SMALL_SEQUENCE
    input_shape = (1 + sequence,)
    recipe = SMALL
