"""Fields of configurations look like all other arguments: their docstrings are in the form of Transformers, whose
marks the site would show as they are."""

import re

FIELD = re.compile(r"<code>(`[^<]+?`)(?:, \*optional\*)?(?:, defaults to `?([^`<]+)`?)?</code>")
REFERENCE = re.compile(r"\[(<code>[\w.]+</code>)\]")


def on_page_content(content: str, **_) -> str:
    """Called by mkdocs with the HTML of each page."""
    return REFERENCE.sub(r"\1", FIELD.sub(as_argument, content))


def as_argument(field: re.Match) -> str:
    kind, default = field.groups()
    return f"<code>{kind.replace('`', '')}</code>" + (f", default: <code>{default}</code>" if default else "")
