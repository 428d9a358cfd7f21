"""`python -m hf_wav2vec_family.decoding COMMAND`: language models, decoders, and when what is spoken.

A command is a module with `add_command`; what its `run` returns is printed as JSON.
"""

import argparse
import json
import sys
from dataclasses import asdict, is_dataclass

from hf_wav2vec_family.decoding import align, arpa, ngram, tuning

COMMANDS = (align, ngram, arpa, tuning)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, or 2 with one line on stderr for input that it can't work with."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_wav2vec_family.decoding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(subcommands)
    options = parser.parse_args(arguments)
    try:
        result = options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if result is not None:
        print(json.dumps(asdict(result) if is_dataclass(result) else result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
