"""`python -m hf_wav2vec_family.demo --model FOLDER [--codes FOLDER] [--live FOLDER]`, each a folder or a Hub name.

`--space FOLDER` writes the files of a Space with these models instead; push them with
`hf upload me/demo FOLDER --repo-type space`.
"""

import argparse
from pathlib import Path

APP = '''"""A Space: the models in a browser."""

from hf_wav2vec_family.demo.app import build, launch

launch(build(model={model!r}, codes={codes!r}, live={live!r}))
'''
CARD = """---
title: Contrastive speech models
sdk: gradio
app_file: app.py
license: apache-2.0
models:
{models}
---
Text with the time of each word, codes over the spectrogram, features of live speech.
"""


def write_space(folder: Path, *, model: str, codes: str, live: str):
    """`app.py`, `requirements.txt` and `README.md`; models are named as they will be found, on the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "app.py").write_text(APP.format(model=model, codes=codes, live=live))
    (folder / "requirements.txt").write_text("hf-wav2vec-family[demo,decode]\n")
    named = sorted({name for name in (model, codes, live) if name})
    (folder / "README.md").write_text(CARD.format(models="\n".join(f"- {name}" for name in named)))


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m hf_wav2vec_family.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="", help="gives text: any CTC or ASG model")
    parser.add_argument("--codes", default="", help="gives codes: a vq-wav2vec or Discrete BERT")
    parser.add_argument("--live", default="", help="streams: a CPC, or a wav2vec or vq-wav2vec of causal norms")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="a public address, through Gradio's servers")
    parser.add_argument("--space", type=Path, metavar="FOLDER", help="write a Space instead of serving the page")
    options = parser.parse_args(arguments)
    models = {"model": options.model, "codes": options.codes, "live": options.live}
    if options.space is not None:
        return write_space(options.space, **models)
    try:
        from .app import build, launch
    except ImportError as error:
        parser.error(f'{error}; the demo needs pip install ".[demo]".')
    launch(build(**models), server_port=options.port, share=options.share)


if __name__ == "__main__":
    main()
