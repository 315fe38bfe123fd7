"""A logger that follows Optuna's verbosity and handlers."""

import logging
import re

import optuna


def _configure() -> None:
    # With Optuna's library logger as its parent, `optuna.logging.set_verbosity`,
    # `disable_default_handler` and `enable_propagation` govern ours too, at any later time.
    optuna.logging.get_verbosity()  # makes Optuna configure its own logger first
    logging.getLogger("lyap_optuna").parent = logging.getLogger("optuna")


def without_passwords(text: str) -> str:
    """Hide the passwords that URLs in ``text`` show; messages of database drivers hold URLs."""
    text = re.sub(r"(\w[\w+.-]*://[^\s:/@]*):[^\s/]*@", r"\1:***@", text)
    text = re.sub(r"(^|(?<=[\s'\"(=]))([^\s:@'\"(=]*):(?!//)\S*@(?=[\w\[.-])", r"\2:***@", text)
    secret = r"([\w-]*(?:passw|pwd|secret|token)[\w-]*=)[^&#\s'\"]+"
    return re.sub(secret, r"\1***", text, flags=re.IGNORECASE)


def lost_scheme(storage: str) -> bool:
    """Whether the name of a storage is a URL that lost its scheme, not the path of a file.

    A login tells (``me:password@host/name``), or a parameter that holds a password. It must not
    become the name of a file or folder, which everybody can see. A path with a colon before an @
    is written with ``./`` in front.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|\.{1,2}/", storage):
        return False
    secret = r"(?<![A-Za-z])(passw\w*|pwd|secret|token)\s*="
    return bool(re.search(r":[^@]*@", storage) or re.search(secret, storage, re.IGNORECASE))


def get_logger(name: str) -> logging.Logger:
    """Return the logger ``name`` (below ``lyap_optuna``), governed by :mod:`optuna.logging`."""
    _configure()
    return logging.getLogger(name)
