"""Where a number was made: the processor and the commit, which stand beside every measured one."""

import platform
import subprocess
from pathlib import Path


def processor_name() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def commit_hash() -> str | None:
    """The short hash of the checkout that this file is of, with + if code differs from it; None outside of one."""
    head, changed = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "-uno", "--", "*.py", "*.yaml")
    return f"{head}+" if changed else head or None


def _git(*asked: str) -> str:
    command = ["git", "-C", Path(__file__).parents[1], *asked]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
