"""`python -m hf_wav2vec_family.decoding COMMAND ...`; a command is a module with `add_arguments` and `run`."""

import argparse
import sys

from hf_wav2vec_family.decoding import align

COMMANDS = {"align": align}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, or 2 with one line on stderr for what it cannot do."""
    parser = argparse.ArgumentParser(prog="python -m hf_wav2vec_family.decoding")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
