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
    """The short hash of the checkout that this file is of, None outside of one."""
    asked = ["git", "-C", Path(__file__).parent, "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or None
