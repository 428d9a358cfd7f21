"""Two splits of the same speakers, for a probe that tells them: every so many utterances of each are held out.

python -m training.hold_out /my/corpus --split train --every 5 --output corpus-of-speakers

No audio is copied: `train/` and `dev/` of the output have a `metadata.jsonl` each and a link to the split's folder.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

AUDIO = "audio"


def held_out(rows: list[dict], every: int) -> list[bool]:
    """Which of `rows` are: the utterances number `every`, 2 * `every`, ... of each speaker."""
    seen, found = Counter(), []
    for row in rows:
        if row.get("speaker_id") is None:
            raise ValueError(f"the split needs a column speaker_id, which {row.get('file_name')} has not.")
        seen[row["speaker_id"]] += 1
        found.append(seen[row["speaker_id"]] % every == 0)
    return found


def main(arguments: list[str] | None = None):
    options = parse_arguments(arguments)
    folder = (options.corpus / options.split).resolve()
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        raise ValueError(f"corpus must be a folder with {options.split}/metadata.jsonl, got {options.corpus}.")
    rows = [json.loads(line) for line in metadata.read_text().splitlines() if line.strip()]
    chosen = held_out(rows, options.every)
    for split, wanted in (("train", False), ("dev", True)):
        target = options.output / split
        target.mkdir(parents=True, exist_ok=True)
        if not (target / AUDIO).is_symlink():
            (target / AUDIO).symlink_to(folder, target_is_directory=True)
        kept = [row for row, is_out in zip(rows, chosen, strict=True) if is_out == wanted]
        lines = [json.dumps({**row, "file_name": f"{AUDIO}/{row['file_name']}"}) + "\n" for row in kept]
        (target / "metadata.jsonl").write_text("".join(lines))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder with SPLIT/metadata.jsonl")
    parser.add_argument("--split", default="train")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.every < 2:
        parser.error(f"--every must be at least 2, got {options.every}")
    return options


if __name__ == "__main__":
    main()
