"""ARPA files read without a library, and how well such a model predicts a text.

With `log10 p` of an n-gram and the back-off weight of each context, a word w after a context c has the probability of
the longest n-gram that the file holds for it, times the weights of all longer contexts on the way:
p(w | c) = p(cw) if cw is there, else weight(c) p(w | c without its first word).
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .text_lines import UNITS_HELP, read_lines, units_of

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


@dataclass
class ArpaModel:
    """`probabilities` and `backoffs`: base-10 logarithms under the words of an n-gram; a weight not there is 0."""

    order: int
    probabilities: dict[tuple[str, ...], float]
    backoffs: dict[tuple[str, ...], float]

    @classmethod
    def read(cls, path: str | Path) -> "ArpaModel":
        """
        Raises:
            ValueError: the file isn't one; the line is named.
        """
        model, order = cls(0, {}, {}), 0
        # A binary of KenLM is no text; whatever is read of it is no section either.
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.startswith("\\"):
                    section = line.strip().strip("\\").removesuffix(":")
                    order = int(section.removesuffix("-grams")) if section.endswith("-grams") else 0
                    model.order = max(model.order, order)
                elif order and line.strip():
                    model._add(line.split(), order, f"{path}, line {number}")
        if not model.order:
            raise ValueError(f"{path}: expected an ARPA file, which has sections such as \\1-grams:, got none.")
        return model

    def _add(self, fields: list[str], order: int, place: str) -> None:
        """One n-gram: log10 p, the words, and a back-off weight where longer ones begin with it."""
        words = tuple(fields[1 : order + 1])
        if len(words) < order or len(fields) > order + 2:
            raise ValueError(f"{place}: expected an n-gram of order {order}, got {' '.join(fields)!r}.")
        self.probabilities[words] = float(fields[0])
        if len(fields) == order + 2:
            self.backoffs[words] = float(fields[-1])

    @property
    def words(self) -> list[str]:
        """The vocabulary without `<unk>`, `<s>` and `</s>`."""
        return [ngram[0] for ngram in self.probabilities if len(ngram) == 1 and ngram[0] not in (UNKNOWN, BEGIN, END)]

    def score(self, context: Sequence[str], word: str) -> float:
        """log10 p(word | context); words that the model doesn't know are `<unk>`, and -inf if it has none."""
        known = [w if (w,) in self.probabilities else UNKNOWN for w in (*context, word)]
        context, word = tuple(known[max(len(known) - self.order, 0) : -1]), known[-1]
        total = 0.0
        while (*context, word) not in self.probabilities:
            if not context:
                return float("-inf")
            total += self.backoffs.get(context, 0.0)
            context = context[1:]
        return total + self.probabilities[(*context, word)]


@dataclass
class Perplexity:
    """10 to the power of minus the mean log10 probability of words and ends of sentences.

    `perplexity` has words unknown to the model in it, with the probability of `<unk>`;
    `perplexity_of_known_words` leaves them out, though not from the contexts of others.
    """

    perplexity: float
    perplexity_of_known_words: float
    log10_probability: float
    num_sentences: int
    num_units: int
    num_unknown: int


def perplexity(model: ArpaModel, sentences: Iterable[Sequence[str]]) -> Perplexity:
    """Of sentences, each a sequence of the model's units.

    Raises:
        ValueError: there is no sentence.
    """
    known_total, unknown_total = 0.0, 0.0
    num_sentences = num_units = num_unknown = 0
    for sentence in sentences:
        num_sentences += 1
        before = [BEGIN]
        for word in (*sentence, END):
            score = model.score(before, word)
            num_units += 1
            if (word,) in model.probabilities:
                known_total += score
            else:
                unknown_total, num_unknown = unknown_total + score, num_unknown + 1
            before = [*before, word][-model.order :]
    if not num_sentences:
        raise ValueError("sentences: expected text, got no sentence at all.")
    total = known_total + unknown_total
    return Perplexity(
        perplexity=10 ** (-total / num_units),
        perplexity_of_known_words=10 ** (-known_total / (num_units - num_unknown)),
        log10_probability=total,
        num_sentences=num_sentences,
        num_units=num_units,
        num_unknown=num_unknown,
    )


def add_command(subcommands: "argparse._SubParsersAction"):
    """The subcommand `perplexity`."""
    parser = subcommands.add_parser("perplexity", help="how well an ARPA model predicts a text")
    parser.add_argument("arpa", metavar="ARPA", type=Path)
    parser.add_argument("texts", metavar="TEXT", nargs="+", type=Path, help="one sentence per line; .gz, .jsonl too")
    parser.add_argument("--tokenizer", metavar="FOLDER", help=UNITS_HELP)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Perplexity:
    sentences = units_of(read_lines(options.texts), options.tokenizer)
    return perplexity(ArpaModel.read(options.arpa), sentences)
