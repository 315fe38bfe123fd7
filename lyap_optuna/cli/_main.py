"""The group that holds the subcommands, and what happens to an error that none of them foresaw."""

import traceback
from typing import Any

import click

from lyap_optuna._version import __version__
from lyap_optuna.cli._storage import scrub

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class _Group(click.Group):
    """Turns any error into one line without a password, and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            # Database drivers put connection URLs into messages and tracebacks.
            if ctx.params.get("debug"):
                click.echo(scrub(traceback.format_exc()), err=True)
            text = scrub(str(error)).strip() or "no message"
            raise click.ClickException(f"{type(error).__name__}: {text}") from None


@click.group(
    "lyap-optuna",
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.",
)
@click.version_option(__version__, prog_name="lyap-optuna", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show tracebacks of unexpected errors.")
def main(debug: bool) -> None:
    """Prune and rank Optuna trials of recurrent networks by their Lyapunov exponents."""


def _register() -> None:
    from lyap_optuna.cli._campaign import campaign
    from lyap_optuna.cli._dashboard import dashboard
    from lyap_optuna.cli._demo import demo
    from lyap_optuna.cli._explain import explain
    from lyap_optuna.cli._rank import rank
    from lyap_optuna.cli._replay import replay
    from lyap_optuna.cli._report import report
    from lyap_optuna.cli._skill import skill
    from lyap_optuna.cli._spectra import spectra
    from lyap_optuna.cli._storage_commands import storage

    for command in (
        campaign,
        dashboard,
        demo,
        explain,
        rank,
        replay,
        report,
        skill,
        spectra,
        storage,
    ):
        main.add_command(command)


_register()
