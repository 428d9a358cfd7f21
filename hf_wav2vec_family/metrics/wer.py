"""Word error rate as an `evaluate` metric that needs no Hub: import the class, or `evaluate.load` this file."""

# Two lines: the reader of imports in `evaluate` takes a comma for part of a package's name.
import datasets
import evaluate
import jiwer

_DESCRIPTION = """
Word error rate of a whole set: (substitutions + insertions + deletions) / words in the references, aligned clip by
clip with the fewest errors. Words are what spaces separate; case and punctuation count, so normalise both sides first.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`): what the recogniser wrote, one text per clip.
    references (`list[str]`): what was said, in the same order.

Returns:
    `dict`: `wer` (float; 0 is perfect, above 1 is possible) and the counts it is made of, `substitutions`,
    `insertions`, `deletions`, `hits`, `num_reference_words`.
    An empty reference is a clip without speech: every word predicted for it is an insertion. If no reference has a
    word, the rate has no denominator and `wer` is the number of insertions, as in jiwer.

Raises:
    ValueError: no clips at all, or the two lists differ in length.
"""


class WordErrorRate(evaluate.Metric):
    """Words wrong per word said; what goes in, what comes out and when it refuses is in `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references) -> dict[str, float | int]:
        if len(references) == 0:
            raise ValueError("references are empty: without any clip there is no word error rate.")
        output = jiwer.process_words(reference=list(references), hypothesis=list(predictions))
        return {
            "wer": float(output.wer),
            "substitutions": output.substitutions,
            "insertions": output.insertions,
            "deletions": output.deletions,
            "hits": output.hits,
            "num_reference_words": output.hits + output.substitutions + output.deletions,
        }
