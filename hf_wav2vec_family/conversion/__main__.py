"""`python -m hf_wav2vec_family.conversion CHECKPOINT OUTPUT_DIR [--dictionary FILE] [--vq-wav2vec FOLDER]`."""

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
        "--dictionary",
        type=Path,
        metavar="FILE",
        help="dict.ltr.txt of a CTC model or dict.txt of a RoBERTa on codes, to write its tokenizer too",
    )
    parser.add_argument(
        "--vq-wav2vec",
        metavar="FOLDER",
        help="converted vq-wav2vec whose codes the RoBERTa reads, to write both as one Discrete BERT",
    )
    options = parser.parse_args(arguments)
    try:
        converted = convert_checkpoint(
            options.checkpoint, dictionary=options.dictionary, vq_wav2vec=options.vq_wav2vec
        )
        converted.save_pretrained(options.output_dir)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{converted.kind}: {converted.model.num_parameters():,} parameters written to {options.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
