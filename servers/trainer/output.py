"""What a process of the Trainer wrote."""

from pathlib import Path
from typing import Final

_TAIL: Final = 4096


def last_line(file: Path, *, most: int) -> str:
    """The last line of a file that is not blank, at most so many characters; empty where there is none to be read."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _TAIL))
            lines = opened.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[:most]
