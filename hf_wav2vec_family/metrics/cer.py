"""Character error rate as an `evaluate` metric that needs no Hub: import the class, or `evaluate.load` this file."""

# Two lines: the reader of imports in `evaluate` takes a comma for part of a package's name.
import datasets
import evaluate
import jiwer

_DESCRIPTION = """
Character error rate of a whole set: (substitutions + insertions + deletions) / characters in the references, aligned
clip by clip with the fewest errors. As in jiwer, the spaces between words are characters too, and those before and
after the text are not; case and punctuation count, so normalise both sides first.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`): what the recogniser wrote, one text per clip.
    references (`list[str]`): what was said, in the same order.

Returns:
    `dict`: `cer` (float; 0 is perfect, above 1 is possible) and the counts it is made of, `substitutions`,
    `insertions`, `deletions`, `hits`, `num_reference_characters`.
    An empty reference is a clip without speech: every character predicted for it is an insertion. If no reference has
    a character, the rate has no denominator and `cer` is the number of insertions, as in jiwer.

Raises:
    ValueError: no clips at all, or the two lists differ in length.
"""


class CharacterErrorRate(evaluate.Metric):
    """Characters wrong per character said; what goes in, comes out and is refused is in `inputs_description`."""

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
            raise ValueError("references are empty: without any clip there is no character error rate.")
        output = jiwer.process_characters(reference=list(references), hypothesis=list(predictions))
        return {
            "cer": float(output.cer),
            "substitutions": output.substitutions,
            "insertions": output.insertions,
            "deletions": output.deletions,
            "hits": output.hits,
            "num_reference_characters": output.hits + output.substitutions + output.deletions,
        }
