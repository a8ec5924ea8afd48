"""Token logits of a small language model on real text, to try `fastloss score | compare` on.

    python examples/language_model.py model
    fastloss score model/trigram.npy model/tokens.npy --shift 1 --group-by model/documents.csv
    fastloss compare model/trigram.npy model/trigram-float16.npy model/tokens.npy --shift 1
    fastloss compare model/trigram.npy model/bigram.npy model/tokens.npy --shift 1

Needs NumPy alone, and takes a few seconds. All text comes with Python: the model learns from the
docstrings of the standard library, and is asked about the topics of Python's own help, such as
``help("if")``. So the perplexity of a topic says how much it reads like a docstring.

The model counts: after the words u and v the next is w with probability

    P(w | u v) = (count(u v w) + 20 P(w | v)) / (count(u v) + 20),
    P(w | v)   = (count(v w) + 60 P(w)) / (count(v) + 60),

the trigram; the bigram is the second line alone. Files are as a training framework would save them:
logits (documents, places, words), which tell at each place what comes next, and tokens of the same
places, -100 behind the end of a document.
"""

from __future__ import annotations

import argparse
import ast
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

WORDS = 1500
PLACES = 128
OTHER = 0  # the number of all words that are not among the most frequent


def words_of(text: str) -> list[str]:
    """Words, numbers and signs; a line drawn of one sign counts as one."""
    text = re.sub(r"([^\w\s])\1{3,}", r"\1", text.lower())
    return re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text)


def docstrings() -> Iterator[str]:
    """The docstrings of the standard library's modules, classes and functions."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


class Model:
    """Counts of words, pairs and triples."""

    def __init__(self, texts: Iterator[str]):
        documents = [words_of(text) for text in texts]
        counts = Counter(word for document in documents for word in document)
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: WORDS - 1]
        self.numbers = {word: number for number, word in enumerate(frequent, 1)}
        pairs = np.zeros((WORDS, WORDS), np.float32)
        self.triples: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
        for document in documents:
            tokens = self.tokens(document)
            np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
            for u, v, w in zip(tokens, tokens[1:], tokens[2:], strict=False):
                self.triples[u, v][w] += 1
        single = pairs.sum(axis=0) + 1
        single /= single.sum()
        self.pairs = (pairs + 60 * single) / (pairs.sum(axis=1, keepdims=True) + 60)

    def tokens(self, words: list[str]) -> list[int]:
        return [self.numbers.get(word, OTHER) for word in words]

    def bigram(self, tokens: list[int]) -> np.ndarray:
        """Logits for what comes behind each token."""
        return np.log(self.pairs[tokens])

    def trigram(self, tokens: list[int]) -> np.ndarray:
        probs = self.pairs[tokens]
        for at, pair in enumerate(pairwise(tokens), 1):
            if counts := self.triples.get(pair):
                probs[at] *= 20
                for word, count in counts.items():
                    probs[at, word] += count
                probs[at] /= counts.total() + 20
        return np.log(probs)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(docstrings())
    names = sorted(topics)
    tokens = np.full((len(names), PLACES), -100)
    logits = {
        name: np.zeros((len(names), PLACES, WORDS), np.float32) for name in ("bigram", "trigram")
    }
    for row, name in enumerate(names):
        known = model.tokens(words_of(topics[name]))[:PLACES]
        tokens[row, : len(known)] = known
        for kind, array in logits.items():
            array[row, : len(known)] = getattr(model, kind)(known)
    np.save(folder / "tokens.npy", tokens)
    for kind, array in logits.items():
        np.save(folder / f"{kind}.npy", array)
    np.save(folder / "trigram-float16.npy", logits["trigram"].astype(np.float16))
    text = "document\n" + "".join(f"{name}\n" for name in names)
    (folder / "documents.csv").write_text(text)
    counted = int((tokens[:, 1:] >= 0).sum())
    print(f"{len(names)} documents, {counted:,} tokens to predict, {WORDS:,} words, in {folder}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("model"))
    main(parser.parse_args().folder)
