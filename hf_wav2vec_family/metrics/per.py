"""Phone error rate as an `evaluate` metric that needs no Hub: import the class, or `evaluate.load` this file."""

from itertools import groupby

# Two lines: the reader of imports in `evaluate` takes a comma for part of a package's name.
import datasets
import evaluate
import jiwer

_DESCRIPTION = """
Phone error rate of a whole set: (substitutions + insertions + deletions) / phones in the references, aligned clip by
clip with the fewest errors. Phones are what spaces separate. Sets of phones are made comparable by `phone_map`, as
TIMIT's 61 are scored as 39 (`timit_map` of phones.py).
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions (`list[str]`): the phones that were recognised, one text per clip.
    references (`list[str]`): the phones that were said, in the same order.
    phone_map (`dict[str, str | None]`, *optional*): what each phone of either side is scored as; None leaves it out.
    merge_repeats (`bool`, *optional*): whether runs of one phone, after the map, count as one on both sides; by
        default they do if there is a map. Folding makes runs that nobody spoke: the closure and the silence of
        "tcl pau" both become "sil", and a recogniser trained on the folded phones without repetitions, as ASG's,
        cannot write "sil sil".
    per_clip (`bool`, *optional*, defaults to `False`): whether the lists below are wanted.

Returns:
    `dict`: `per` (float; 0 is perfect, above 1 is possible) and the counts it is made of, `substitutions`,
    `insertions`, `deletions`, `hits`, `num_reference_phones`; with `per_clip` also `clip_errors` and `clip_lengths`,
    the errors and reference phones of each clip.
    An empty reference is a clip without speech: every phone predicted for it is an insertion. If no reference has a
    phone, the rate has no denominator and `per` is the number of insertions, as in jiwer.

Raises:
    ValueError: no clips at all, the two lists differ in length, or a phone that `phone_map` doesn't have.
"""


class PhoneErrorRate(evaluate.Metric):
    """Phones wrong per phone said; what goes in, what comes out and when it refuses is in `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        phone_map: dict[str, str | None] | None = None,
        merge_repeats: bool | None = None,
        per_clip: bool = False,
    ) -> dict[str, float | int | list[int]]:
        if len(references) == 0:
            raise ValueError("references are empty: without any clip there is no phone error rate.")
        merge = phone_map is not None if merge_repeats is None else merge_repeats
        output = jiwer.process_words(
            reference=[_as_scored(text, phone_map, merge) for text in references],
            hypothesis=[_as_scored(text, phone_map, merge) for text in predictions],
        )
        result = {
            "per": float(output.wer),
            "substitutions": output.substitutions,
            "insertions": output.insertions,
            "deletions": output.deletions,
            "hits": output.hits,
            "num_reference_phones": output.hits + output.substitutions + output.deletions,
        }
        if per_clip:
            result["clip_errors"] = [
                sum(max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in chunks)
                for chunks in ([c for c in chunks if c.type != "equal"] for chunks in output.alignments)
            ]
            result["clip_lengths"] = [len(phones) for phones in output.references]
        return result


def _as_scored(text: str, phone_map: dict[str, str | None] | None, merge: bool) -> str:
    phones = text.split()
    if phone_map is not None:
        if unknown := sorted(set(phones) - set(phone_map)):
            raise ValueError(f"phone_map has no {', '.join(unknown)}, which {text!r} has.")
        phones = [phone_map[phone] for phone in phones if phone_map[phone] is not None]
    return " ".join(phone for phone, _ in groupby(phones)) if merge else " ".join(phones)
