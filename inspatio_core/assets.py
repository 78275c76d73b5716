"""Where shipped data lies: in an ament share, in a pip prefix, or in the source checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from inspatio_core.errors import InputError

PACKAGE = "inspatio"


def roots() -> list[Path]:
    """Every folder that holds shipped data, in the order in which `find` looks.

    The ament shares of package `inspatio` (AMENT_PREFIX_PATH) come first, then the prefix of this Python and the one
    that this module was installed below (they differ for ``pip install --user`` and ``--prefix``), then the checkout.
    """
    code = Path(__file__).resolve().parent.parent
    prefixes = [
        Path(prefix)
        for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
        if prefix and Path(prefix, "share/ament_index/resource_index/packages", PACKAGE).exists()
    ]
    prefixes += [Path(sys.prefix), *code.parents[2:3], code]
    shares = [prefix / "share" / PACKAGE for prefix in prefixes]
    if (code / "package.xml").is_file():
        shares.append(code)
    return [share for share in dict.fromkeys(shares) if share.is_dir()]


def find(relative: str) -> Path:
    """Absolute path of shipped data such as ``"scenes/courtyard"`` or ``"traj/pan.txt"``.

    Raises InputError when no root has it, or when `relative` points out of the shipped data.
    """
    parts = Path(relative).parts
    if not parts or Path(relative).is_absolute() or ".." in parts:
        raise InputError(f"{relative!r}: shipped data is named by a relative path such as 'scenes/courtyard'")
    searched = roots()
    for root in searched:
        if (root / relative).exists():
            return root / relative
    places = ", ".join(map(str, searched)) or "no data folder of inspatio is installed"
    raise InputError(f"{relative}: not among the shipped data ({places}); install inspatio anew or give a path")


def scenes() -> list[str]:
    """Names of the shipped scenes, sorted; each opens as ``find(f"scenes/{name}")``."""
    folders = (root / "scenes" for root in roots())
    return sorted(
        {p.name for folder in folders if folder.is_dir() for p in folder.iterdir() if p.is_dir() and p.name[0] != "."}
    )


def cache_dir() -> Path:
    """Folder for what can be made or fetched again: $INSPATIO_CACHE, else below $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("INSPATIO_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser().absolute() / PACKAGE
