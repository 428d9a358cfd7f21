"""Several runs of one experiment, as seeds or folds are, as one row of a table: mean ± standard deviation.

python -m training.summarize runs/seed1/test runs/seed2/test runs/seed3/test --name "wav2vec 2.0, 10 h"
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RATES = ("wer", "cer", "per")


def read_scores(places: Sequence[Path]) -> list[dict]:
    """The `scores.json` that `training.evaluate` left in each folder (or the files themselves).

    Raises:
        ValueError: a place without scores, or scores of different sets of utterances or rates.
    """
    scores = []
    for place in places:
        path = place / "scores.json" if place.is_dir() else place
        if not path.is_file():
            raise ValueError(f"{place} holds no scores.json; give the --output of training.evaluate.")
        scores.append(json.loads(path.read_text()))
    measured = [{name: score.get(name) for name in ("num_utterances", *_rates_of(score))} for score in scores]
    kinds = {(tuple(_rates_of(score)), score.get("num_utterances")) for score in scores}
    if len(kinds) > 1:
        raise ValueError(f"the runs were not measured alike, so they have no mean: {measured}.")
    return scores


def _rates_of(scores: dict) -> list[str]:
    return [name for name in RATES if name in scores]


def table(scores: Sequence[dict], name: str) -> str:
    """Header and row in Markdown, rates in percent.

    The deviation is that of a sample, over runs. A single run has its confidence interval over utterances instead.
    """
    rates = _rates_of(scores[0])
    cells = []
    for rate in rates:
        values = 100 * np.array([score[rate] for score in scores])
        if len(values) > 1:
            cells.append(f"{values.mean():.2f} ± {values.std(ddof=1):.2f}")
        else:
            interval = scores[0].get(f"{rate}_interval")  # a set without speech has none
            extent = "" if interval is None else f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
            cells.append(f"{values[0]:.2f}{extent}")
    header = ["", *(rate.upper() for rate in rates), "utterances", "runs"]
    row = [name, *cells, str(scores[0]["num_utterances"]), str(len(scores))]
    lines = [header, ["---"] * len(header), row]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders or files that training.evaluate wrote")
    parser.add_argument("--name", required=True, help="of the row")
    options = parser.parse_args(arguments)
    summary = table(read_scores(options.runs), options.name)
    print(summary)
    return summary


if __name__ == "__main__":
    main()
