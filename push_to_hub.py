"""Puts a model on the Hub, after looking at all of it.

    python push_to_hub.py runs/mine user/name            says what would go up, and sends nothing
    python push_to_hub.py runs/mine user/name --push     sends it: one commit, tagged with the version

The folder must load in a process without this package, hold nothing but what a model needs, and have a complete card:
README.md in it, or model_cards/NAME.md; `python -m model_cards RECIPE --run RUN` drafts one. The token is that of
`hf auth login` or HF_TOKEN.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from huggingface_hub import HfApi

from hf_wav2vec_family import __version__
from model_cards.results import evaluation_files, lacking, results_of_run, with_results
from publishing.folder import faults_of_card, faults_of_files, files_of, model_folder, older_layout
from publishing.trial import Trial, try_apart
from publishing.upload import Publication, PublishingError, publish

CARDS = Path(__file__).parent / "model_cards"


def prepare(run_or_model: Path, repo_id: str, *, tag: str, private: bool) -> tuple[Publication, Trial]:
    """Everything that would go up, and what a stranger's process made of it.

    Raises:
        ValueError: something is wrong with the folder or its card; all that was found is in the message.
    """
    folder = model_folder(run_or_model)
    faults = faults_of_files(folder)
    card_file = folder / "README.md"
    if not card_file.exists():
        card_file = CARDS / f"{repo_id.rpartition('/')[2]}.md"
    results = results_of_run(folder.parent) if folder.name == "model" else []
    if card_file.exists():
        card = card_file.read_text()
        faults += faults_of_card(card) + lacking(card, results)
    else:
        faults.append(f"there is no card: neither README.md in the folder nor {card_file.name} in model_cards.")
    if faults:
        raise ValueError(f"{folder} cannot go up:\n" + "\n".join(f"- {fault}" for fault in faults))
    made = {
        "README.md": with_results(card, repo_id, results).encode(),
        **older_layout(folder),
        **evaluation_files(results),
    }
    files = {**files_of(folder), **made}
    message = f"{repo_id.rpartition('/')[2]} {tag}, by hf_wav2vec_family {__version__}"
    return Publication(repo_id, files, tag, private, message), try_apart(folder)


def describe(publication: Publication, trial: Trial) -> str:
    """What goes up, to the byte: every file with its size and digest, and in full what is not on the disk as it is."""
    visibility = "private" if publication.private else "public"
    lines = [f"{publication.repo_id}, {visibility}, one commit, tag {publication.tag}", ""]
    for name, content in sorted(publication.files.items()):
        data = content if isinstance(content, bytes) else content.read_bytes()
        lines.append(f"{len(data):>13,}  {hashlib.sha256(data).hexdigest()[:12]}  {name}")
    for name, content in sorted(publication.files.items()):
        if isinstance(content, bytes):
            lines += ["", f"==> {name}", content.decode().rstrip()]
    lines += ["", "without this package it loads as"]
    lines += [f"{auto_class:>40}  {found}" for auto_class, found in trial.classes.items()]
    return "\n".join([*lines, f"and makes of a second of noise: {trial.answer}"])


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUN_OR_MODEL_DIR")
    parser.add_argument("repo_id", metavar="user/name")
    parser.add_argument("--private", action="store_true", help="for a new repository; it then stays private")
    parser.add_argument("--tag", default=f"v{__version__}", help="by default the version of this package")
    parser.add_argument("--push", action="store_true", help="send it; without this, nothing is sent")
    options = parser.parse_args(arguments)
    try:
        publication, trial = prepare(options.folder, options.repo_id, tag=options.tag, private=options.private)
        print(describe(publication, trial))
        if not options.push:
            print("\nnothing was sent; --push sends it")
            return
        published = publish(publication, HfApi())
        print(f"\npublished, {'for you alone' if published.private else 'for everybody'}: {published.url}")
        if published.private and not options.private:
            print("the repository was there before and private; its settings on the Hub make it public")
    except (ValueError, PublishingError) as error:
        sys.exit(f"push_to_hub: {error}")


if __name__ == "__main__":
    main()
