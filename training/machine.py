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
    """The short hash of the checkout that this file is of, with + if files differ from it; None outside of one."""
    git = ["git", "-C", Path(__file__).parent]
    head, changed = (
        subprocess.run([*git, *asked], capture_output=True, text=True, check=False).stdout.strip()
        for asked in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    )
    return f"{head}+" * bool(head) if changed else head or None
