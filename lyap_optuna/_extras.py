"""How to install what an optional part of the package needs, from where the package came."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import urlsplit
from urllib.request import url2pathname


def how_to_install(extra: str) -> str:
    """Return the command that adds an extra to this installation.

    A package that was installed from a folder or a wheel names that, so that the command works
    where no release is to be found.

    Args:
        extra: A name of ``[project.optional-dependencies]``.

    Returns:
        A line for a shell.

    Example:
        >>> how_to_install("dashboard").startswith("pip install ")
        True
    """
    return f"pip install {_options()}{shlex.quote(f'{_source()}[{extra}]')}"


def _origin() -> dict[str, object]:
    """Return what pip noted of where the package came from; empty for a release (PEP 610)."""
    try:
        noted = distribution("lyap-optuna").read_text("direct_url.json")
        origin = json.loads(noted or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _source() -> str:
    url = str(_origin().get("url", ""))
    return url2pathname(urlsplit(url).path) if url.startswith("file://") else "lyap-optuna"


def _options() -> str:
    folder = _origin().get("dir_info")
    return "-e " if isinstance(folder, dict) and folder.get("editable") is True else ""
