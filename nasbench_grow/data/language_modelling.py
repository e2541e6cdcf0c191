"""What language modelling tasks share: recipe, loss and perplexity, after Zaremba et al. (arXiv 1409.2329)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasbench_grow.base.errors import UserError
from nasbench_grow.contract.task import Batch, Recipe, Split, Splits, Task, TrainSplit
from nasbench_grow.data.evaluating import evaluating
from nasbench_grow.data.raw import RawText
from nasbench_grow.data.text import TextSplit, TextTrainSplit, sequences_of_batch


@dataclass(frozen=True)
class ZarembaRecipe(Recipe):
    """Plain SGD with clipped gradients, as for the large network of the paper (section 4.1).

    The rate is constant for 14 of 55 epochs, then divided by 1.15 after each; a run of another length goes through the
    same 55 stages in its own time. Unlike in the paper it rises first, as in all recipes here: a network that grows
    meanwhile would saturate its first few units.
    """

    batch_size: int = 20
    learning_rate: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 10.0
    """Largest Euclidean norm of the gradient."""
    stages: int = 55
    constant_stages: int = 14
    decay: float = 1.15

    def learning_rate_at(self, progress: float) -> float:
        """The rate at the end of a step; the share ``progress`` of all steps is done by then."""
        if progress < self.warmup:
            return super().learning_rate_at(progress)
        stage = math.ceil(progress * self.stages - 1e-9)
        return self.learning_rate * self.decay ** -max(0, stage - self.constant_stages)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """SGD that clips the gradient before each step."""
        optimizer = super().optimizer(network)

        def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)

        optimizer.register_step_pre_hook(clip)
        return optimizer


class LanguageModelling(Task):
    """Predicts each word of a text from those before it.

    An input is (1 + T): whether the sequence goes on where the last one ended, then T words (see
    :class:`nasbench_grow.backbones.lstm.LanguageModel`). MACs are those of one such sequence.
    """

    metric = "perplexity"
    higher_is_better = False
    metric_scale = 1.0
    metric_unit = ""
    sequence: ClassVar[int] = 35
    """Time steps of truncated back-propagation (T)."""
    input_shape = (1 + sequence,)
    recipe = ZarembaRecipe()
    batch_may_change = False

    def initialise(self, network: nn.Module, train: TrainSplit) -> None:
        """Start the softmax's biases at the logarithms of the words' frequencies (a word counts one more than it is
        seen), so that no hidden unit has to learn them first: in a network of a few units, which growing starts from,
        that saturates them."""
        assert isinstance(train, TextTrainSplit)
        counts = torch.bincount(train.words, minlength=self.num_classes) + 1
        with torch.no_grad():
            cast(Any, network).get_classifier().bias.copy_((counts / counts.sum()).log())

    def output_shape(self) -> tuple[int, ...]:
        """A logit for each word of the vocabulary at each time step."""
        return (self.sequence, self.num_classes)

    @abstractmethod
    def read(self) -> RawText:
        """The three texts; raises UserError where they cannot be had."""

    def load(self, device: torch.device, train_samples: int | None = None) -> Splits:
        """The splits on ``device``; ``train_samples`` keeps that many sequences, from the beginning of the text.

        Raises:
            UserError: the data cannot be had, or a text or ``train_samples`` is too short for a batch of sequences.
        """
        raw = self.read()
        most = (len(raw.train) - 1) // self.sequence
        least = sequences_of_batch(self.recipe.batch_size, self.sequence)
        samples = most if train_samples is None else train_samples
        if most < least or len(raw.val) < 2 or len(raw.test) < 2:
            raise UserError(
                f"the texts of {self.name} have {len(raw.train)}, {len(raw.val)} and {len(raw.test)} words, too few "
                f"for {self.recipe.batch_size} sequences of {self.sequence}; give {least * self.sequence + 1} or more "
                "to train on and 2 or more to validate and test on"
            )
        if not least <= samples <= most:
            raise UserError(
                f"train_samples is {train_samples}, but {self.name} needs {least} (sequences of a batch) to {most} "
                "(all); choose a number in that range or leave it out to use all"
            )
        train = raw.train if train_samples is None else raw.train[: train_samples * self.sequence + 1]
        return Splits(
            train=TextTrainSplit(train.to(device), self.sequence),
            val=TextSplit(raw.val.to(device), self.sequence),
            test=TextSplit(raw.test.to(device), self.sequence),
        )

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross entropy, summed over the T time steps, mean over the batch (the learning rate is meant for that);
        ``output`` are logits (batch, T, words), ``target`` words (batch, T)."""
        return F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="sum") / len(target)

    def evaluate(self, network: nn.Module, split: Split, batch_size: int = 8) -> float:
        """Perplexity: the exponential of the mean cross entropy over all words of the split but the first, of which
        the network reads ``batch_size`` sequences at a time."""
        with evaluating(network):
            batches = _joined(split.batches(1), batch_size)
            parts = [(self.loss(network(words), target), target.shape) for words, target in batches]
        total = sum(float(loss) * shape[0] for loss, shape in parts)
        return math.exp(total / sum(shape.numel() for _, shape in parts))

    def example(self) -> Tensor:
        """One sequence of the first word that does not go on, int64."""
        return torch.zeros(1, *self.input_shape, dtype=torch.int64)


def _joined(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """As many consecutive sequences as ``size`` says as one long one, because a network reads that faster."""
    while part := list(islice(batches, size)):
        inputs, targets = zip(*part, strict=True)
        yield torch.cat([inputs[0][:, :1], *(words[:, 1:] for words in inputs)], dim=1), torch.cat(targets, dim=1)
