"""Language modelling: the order of the words, perplexity, the recipe, and texts that do not fit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nasbench_grow import count_macs, results
from nasbench_grow.backbones import create
from nasbench_grow.backbones.lstm import LanguageModel
from nasbench_grow.base.errors import UserError
from nasbench_grow.data.language_modelling import LanguageModelling, ZarembaRecipe
from nasbench_grow.data.raw import RawText
from nasbench_grow.data.text import TextSplit, TextTrainSplit
from nasbench_grow.harness import registry
from nasbench_grow.harness.cell import make_cell
from nasbench_grow.harness.runner import run_cell
from nasbench_grow.harness.store import Store
from nasbench_grow.tasks.brown import Brown
from nasbench_grow.tasks.ptb import PennTreebank
from nasbench_grow.tasks.ptb_small import SmallPennTreebank

CPU = torch.device("cpu")


class Alphabet(LanguageModelling):
    """A made-up text of as many words as asked for."""

    name = "alphabet"
    summary = "made up"
    num_classes = 7

    def __init__(self, train: int = 2000, val: int = 100, test: int = 101) -> None:
        self.lengths = (train, val, test)

    def read(self) -> RawText:
        drawn = [
            torch.randint(7, (n,), generator=torch.Generator().manual_seed(n), dtype=torch.int32) for n in self.lengths
        ]
        return RawText(*drawn, vocabulary=torch.zeros(1, dtype=torch.uint8))


def test_streams_are_read_in_parallel_and_go_on():
    split = TextTrainSplit(torch.arange(23), sequence=4)
    batches = list(split.epoch(1, batch_size=2, seed=0))
    assert split.steps_per_epoch(2) == len(batches) == 2
    (first, first_target), (second, second_target) = batches
    assert first.tolist() == [[0, 0, 1, 2, 3], [0, 11, 12, 13, 14]]
    assert first_target.tolist() == [[1, 2, 3, 4], [12, 13, 14, 15]]
    assert second.tolist() == [[1, 4, 5, 6, 7], [1, 15, 16, 17, 18]]
    assert second_target.tolist() == [[5, 6, 7, 8], [16, 17, 18, 19]]


@pytest.mark.parametrize("length", [2, 9, 10, 11])
def test_evaluation_predicts_every_word_but_the_first_once(length):
    split = TextSplit(torch.arange(length), sequence=3)
    batches = list(split.batches(512))
    assert len(batches) == len(split)
    assert torch.cat([target[0] for _, target in batches]).tolist() == list(range(1, length))
    assert torch.cat([inputs[0, 1:] for inputs, _ in batches]).tolist() == list(range(length - 1))
    assert [int(inputs[0, 0]) for inputs, _ in batches] == [0] + [1] * (len(batches) - 1)


class Constant(nn.Module):
    """Gives every word the same chance."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros(len(inputs), inputs.shape[1] - 1, 7)


def test_perplexity_of_knowing_nothing_is_the_number_of_words():
    task = Alphabet()
    assert task.evaluate(Constant(), task.load(CPU).test) == pytest.approx(7)


@pytest.mark.parametrize("at_a_time", [1, 2, 3])
def test_perplexity_is_that_of_the_text_read_in_one_go(at_a_time):
    task = Alphabet(test=95)
    text = task.read().test.long()
    network = LanguageModel(7, 5, layers=2, dropout=0.5, scale=0.8)
    network.eval()
    with torch.no_grad():
        logits = network(torch.cat([torch.zeros(1, dtype=torch.int64), text[:-1]]).unsqueeze(0))[0]
    chances = logits.softmax(1)[torch.arange(94), text[1:]].double()
    wanted = math.exp(-sum(math.log(chance) for chance in chances.tolist()) / 94)
    network.train()
    assert task.evaluate(network, task.load(CPU).test, at_a_time) == pytest.approx(wanted, rel=1e-5)
    assert network.training


def test_loss_is_summed_over_time_and_averaged_over_the_batch():
    output, target = torch.zeros(3, 35, 7), torch.zeros(3, 35, dtype=torch.int64)
    assert float(Alphabet().loss(output, target)) == pytest.approx(35 * math.log(7))


def test_learning_rate_of_the_large_recipe():
    """55 epochs of any number of steps: 1 for 14 epochs after a linear rise, then 1/1.15 of the epoch before."""
    recipe = ZarembaRecipe()
    for steps in (1, 10, 1327):
        for epoch in (1, 2, 14, 15, 16, 55):
            for step in {0, steps - 1}:
                progress = ((epoch - 1) * steps + step + 1) / (55 * steps)
                assert recipe.learning_rate_at(progress) == pytest.approx(
                    min(1, progress / 0.05) * 1.15 ** -max(0, epoch - 14)
                )


def test_learning_rate_of_the_small_recipe():
    """13 epochs: 1 for 4 of them after a rise in the first, then half of the epoch before."""
    recipe = SmallPennTreebank.recipe
    assert recipe.learning_rate_at(0.025) == pytest.approx(0.5)
    for epoch in (2, 4, 5, 6, 13):
        assert recipe.learning_rate_at((epoch - 0.5) / 13) == pytest.approx(0.5 ** max(0, epoch - 4))


def test_training_starts_from_the_frequencies_of_the_words():
    task = Alphabet()
    train = task.load(CPU).train
    network = LanguageModel(7, 5, layers=2, dropout=0.5, scale=0.0)
    task.initialise(network, train)
    frequencies = torch.bincount(task.read().train, minlength=7) / 2000
    logits = network(torch.zeros(1, 3, dtype=torch.int64))
    assert torch.allclose(logits.softmax(2), frequencies.expand(1, 2, 7), atol=1e-3)


def test_a_word_that_is_never_seen_keeps_a_chance():
    task = Alphabet()
    network = LanguageModel(9, 5, layers=2, dropout=0.5, scale=0.0)
    task.num_classes = 9
    task.initialise(network, task.load(CPU).train)
    assert network.decoder.bias.isfinite().all()


def test_the_optimizer_clips_the_gradient():
    network = nn.Linear(3, 1, bias=False)
    before = network.weight.detach().clone()
    optimizer = ZarembaRecipe().optimizer(network)
    network.weight.grad = torch.tensor([[30.0, 0.0, 40.0]])
    optimizer.step()
    assert torch.allclose(before - network.weight, torch.tensor([[6.0, 0.0, 8.0]]))
    before = network.weight.detach().clone()
    network.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    optimizer.step()
    assert torch.allclose(before - network.weight, torch.tensor([[3.0, 0.0, 4.0]]))


def test_train_samples_are_the_first_sequences():
    task = Alphabet()
    text, whole = task.read().train.long(), task.load(CPU)
    assert len(whole.train) == -(-1999 // 35)
    assert torch.equal(task.load(CPU, train_samples=30).train.words, text[: 30 * 35 + 1])
    for wrong in (20, 58):
        with pytest.raises(UserError, match=rf"train_samples is {wrong}, but alphabet needs 21 .* to 57"):
            task.load(CPU, train_samples=wrong)


@pytest.mark.parametrize("lengths", [(700, 100, 100), (2000, 1, 100), (2000, 100, 1)])
def test_a_text_too_short_for_a_batch_is_refused(lengths):
    with pytest.raises(UserError, match="too few for 20 sequences of 35; give 736 or more"):
        Alphabet(*lengths).load(CPU)


def test_the_small_task_reads_the_same_texts_in_shorter_sequences(data):
    write_ptb(data)
    task = SmallPennTreebank()
    assert torch.equal(task.read().train, PennTreebank().read().train)
    inputs, targets = next(task.load(CPU).train.epoch(1, 20, seed=0))
    assert inputs.shape == (20, 21) and targets.shape == (20, 20)
    assert registry.backbones_for(task) == registry.backbones_for(PennTreebank())


def test_macs_of_the_large_network():
    per_step = 2 * 4 * 1500 * (1500 + 1500) + 1500 * 10_000
    with torch.device("meta"):
        network = create("lstm_1500", 10_000)
    network = network.to_empty(device="cpu")
    assert count_macs(network, PennTreebank().example()) == 35 * per_step


def test_penn_treebank_has_the_published_size():
    raw = PennTreebank().read()
    assert [len(part) for part in (raw.train, raw.val, raw.test)] == [929_589, 73_760, 82_430]
    vocabulary = bytes(raw.vocabulary.numpy()).decode().split("\n")
    assert len(vocabulary) == 10_000 and {"<unk>", "<eos>", "N"} < set(vocabulary)
    assert [vocabulary[number] for number in raw.train[:3]] == ["aer", "banknote", "berlitz"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(tmp_path))
    return tmp_path


def write_ptb(data: Path, valid: str = " the cat \n", test: str = " the dog \n") -> Path:
    folder = data / "ptb"
    folder.mkdir()
    for part, text in (("train", " the cat \n the dog \n" * 200), ("valid", valid), ("test", test)):
        (folder / f"ptb.{part}.txt").write_text(text)
    return folder


def test_a_folder_of_texts_takes_the_place_of_the_package(data):
    assert PennTreebank().fetch() is None
    folder = write_ptb(data)
    raw = PennTreebank().read()
    assert bytes(raw.vocabulary.numpy()).decode().split("\n") == ["<eos>", "cat", "dog", "the"]
    assert raw.train[:6].tolist() == [3, 1, 0, 3, 2, 0] and raw.val.tolist() == [3, 1, 0]
    assert PennTreebank().fetch() == folder


def test_texts_that_do_not_fit_are_named(data):
    folder = write_ptb(data, valid=" the zebra \n")
    with pytest.raises(UserError, match=r"ptb\.valid\.txt has the word 'zebra', which is not among the 4"):
        PennTreebank().read()
    (folder / "ptb.train.txt").write_text(" ".join(map(str, range(10_001))))
    with pytest.raises(UserError, match=r"ptb\.train\.txt has 10001 different words, but ptb has at most 10000"):
        PennTreebank().read()
    (folder / "ptb.test.txt").unlink()
    with pytest.raises(UserError, match=r"ptb\.test\.txt is missing"):
        PennTreebank().read()


def test_brown_wants_all_its_files(data):
    folder = data / "brown"
    folder.mkdir()
    (folder / "ca01").write_text("The/at dog/nn ./.")
    with pytest.raises(UserError, match="has 1 of the 500 files"):
        Brown().read()


def test_brown_is_divided_by_words_and_merges_the_rare_ones(data, monkeypatch):
    monkeypatch.setattr("nasbench_grow.tasks.brown.TRAIN_WORDS", 1000)
    monkeypatch.setattr("nasbench_grow.tasks.brown.VAL_WORDS", 300)
    monkeypatch.setattr(Brown, "contents_sha256", None)
    folder = data / "brown"
    folder.mkdir()
    for number in range(500):
        section, page = divmod(number, 30)
        (folder / f"c{chr(ord('a') + section)}{page:02}").write_text(f"\n\n\tThe/at 1/2/cd word{number}/nn ./.\n")
    raw = Brown().read()
    vocabulary = bytes(raw.vocabulary.numpy()).decode().split("\n")
    assert vocabulary == [".", "1/2", "<unk>", "The"]
    assert [len(raw.train), len(raw.val), len(raw.test)] == [1000, 300, 700]
    assert [vocabulary[number] for number in raw.train[:4]] == ["The", "1/2", "<unk>", "."]


def test_only_the_language_models_serve_a_language_task():
    assert registry.backbones_for(PennTreebank()) == ["lstm_1500", "lstm_200", "lstm_650"]


@pytest.mark.parametrize(("task", "backbone"), [("digits", "lstm_200"), ("ptb", "cifar_resnet20")])
def test_a_backbone_of_another_kind_is_refused_in_one_line(task, backbone, tmp_path):
    cell = make_cell(method="dense", task=task, backbone=backbone, budget=1, seed=0, epochs=1)
    with pytest.raises(UserError, match=f"backbone '{backbone}' cannot serve task '{task}'.*choose one of"):
        run_cell(cell, Store(tmp_path))


def test_a_language_model_grows_in_the_harness(tmp_path, monkeypatch):
    folder = tmp_path / "ptb"
    monkeypatch.setenv("NASBENCH_GROW_DATA", str(tmp_path))
    write_ptb(tmp_path, test=" the dog \n the cat \n")
    (folder / "ptb.train.txt").write_text(" the cat \n the dog \n" * 1000)
    cell = make_cell(
        method="grow", task="ptb_small", backbone="lstm_200", budget=0.5, seed=0, epochs=2, train_samples=100
    )
    record = run_cell(cell, Store(tmp_path / "results"))
    assert record["status"] == "ok", record["error"]
    assert record["metric"] == "perplexity" and record["test_metric"] < 10_000
    assert record["macs"] / record["dense_macs"] == pytest.approx(0.5, abs=0.02)
    layers = results.widths(tmp_path / "results")["layer"]
    assert set(layers) == {"embedding", "layers.0", "layers.1", "decoder"}
