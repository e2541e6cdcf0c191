"""Penn Treebank as Zaremba et al. train their network of 200 units, which is not regularised."""

from __future__ import annotations

from nasbench_grow.data.language_modelling import ZarembaRecipe
from nasbench_grow.tasks.ptb import PennTreebank


class SmallPennTreebank(PennTreebank):
    """The texts of ``ptb``, in sequences of 20 words, with the recipe for the small network."""

    name = "ptb_small"
    summary = "Penn Treebank with the recipe for small networks (lstm_200): 20 words a sequence"
    sequence = 20
    input_shape = (1 + sequence,)
    recipe = ZarembaRecipe(clip=5.0, stages=13, constant_stages=4, decay=2.0)
