"""`python -m hf_wav2vec_family.conversion CHECKPOINT OUTPUT_DIR [--dictionary dict.ltr.txt]`."""

import argparse
import sys
from pathlib import Path

from hf_wav2vec_family.conversion import convert_checkpoint


def main(arguments: list[str] | None = None) -> int:
    """Convert one checkpoint; returns the exit code: 0, or 2 with one line on stderr for a file it cannot convert."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_wav2vec_family.conversion",
        description="Convert an original checkpoint into a folder that from_pretrained reads.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="the original .pt file")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="folder to write")
    parser.add_argument(
        "--dictionary", type=Path, metavar="FILE", help="dict.ltr.txt of a CTC model, to write its tokenizer too"
    )
    options = parser.parse_args(arguments)
    try:
        converted = convert_checkpoint(options.checkpoint, dictionary=options.dictionary)
        converted.save_pretrained(options.output_dir)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{converted.kind}: {converted.model.num_parameters():,} parameters written to {options.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
