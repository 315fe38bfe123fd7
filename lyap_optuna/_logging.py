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
    secret = r"([\w-]*(?:passw|pwd|secret|token)[\w-]*=)[^&#\s'\"]+"
    return re.sub(secret, r"\1***", text, flags=re.IGNORECASE)


def get_logger(name: str) -> logging.Logger:
    """Return the logger ``name`` (below ``lyap_optuna``), governed by :mod:`optuna.logging`."""
    _configure()
    return logging.getLogger(name)
