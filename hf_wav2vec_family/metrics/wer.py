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
    per_clip (`bool`, *optional*, defaults to `False`): whether the lists below are wanted.

Returns:
    `dict`: `wer` (float; 0 is perfect, above 1 is possible) and the counts it is made of, `substitutions`,
    `insertions`, `deletions`, `hits`, `num_reference_words`; with `per_clip` also `clip_errors` and `clip_lengths`,
    the errors and reference words of each clip.
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

    def _compute(self, predictions, references, per_clip: bool = False) -> dict[str, float | int | list[int]]:
        if len(references) == 0:
            raise ValueError("references are empty: without any clip there is no word error rate.")
        output = jiwer.process_words(reference=list(references), hypothesis=list(predictions))
        result = {
            "wer": float(output.wer),
            "substitutions": output.substitutions,
            "insertions": output.insertions,
            "deletions": output.deletions,
            "hits": output.hits,
            "num_reference_words": output.hits + output.substitutions + output.deletions,
        }
        if per_clip:
            result["clip_errors"] = [
                sum(max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in chunks)
                for chunks in ([c for c in chunks if c.type != "equal"] for chunks in output.alignments)
            ]
            result["clip_lengths"] = [len(words) for words in output.references]
        return result
