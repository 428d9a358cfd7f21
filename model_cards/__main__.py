"""Writes the cards of this folder anew, or one for a run of yours.

python -m model_cards
python -m model_cards training/recipes/cpc/small_clean5.yaml --run runs/mine --repo user/name --license cc-by-4.0 \\
    --language de --data "40 h of ..." > runs/mine/model/README.md
"""

import argparse
from pathlib import Path

from .template import HERE, RecipeFile, card_of, recipes


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, help="without it, all cards of this folder")
    parser.add_argument("--run", type=Path, help="the folder of your run")
    parser.add_argument("--repo", metavar="user/name", help="where it is going to be")
    parser.add_argument("--license", help="of your model, as the Hub names it")
    parser.add_argument("--language", help="that it was trained on, such as de")
    parser.add_argument("--data", help="what it was trained on, in words")
    options = parser.parse_args(arguments)
    if options.recipe is None:
        for recipe in recipes():
            (HERE / f"{recipe.name}.md").write_text(card_of(recipe))
        return
    if not (options.run and options.repo and options.license and options.language):
        parser.error("a card of your own needs --run, --repo, --license and --language")
    described = {"license": options.license, "language": options.language, "training_data": options.data}
    print(card_of(RecipeFile(options.recipe), repo_id=options.repo, run=options.run, **described), end="")


if __name__ == "__main__":
    main()
