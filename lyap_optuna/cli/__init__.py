"""The command ``lyap-optuna``: one private module per subcommand."""

from lyap_optuna.cli._main import main

__all__ = ["main"]
