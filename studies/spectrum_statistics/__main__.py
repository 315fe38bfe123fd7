"""Figure 7 of the paper: every statistic of the spectrum against the validation loss.

    python -m studies.spectrum_statistics --scale small

Reads ``charrnn.db`` and ``mocap.db`` in ``OUTPUT``, which ``studies.charrnn`` and ``studies.mocap``
left there; the figures are ``OUTPUT/spectrum_statistics.html`` and
``OUTPUT/spectrum_statistics-correlations.html``.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import click
import optuna
import plotly.graph_objects as go
from plotly.subplots import make_subplots

import lyap_optuna as lyap
from studies import options
from studies.spectrum_statistics.against_loss import best_step, complete_trials, spectra_by_step
from studies.spectrum_statistics.statistics import STATISTICS, Correlation, rank_correlation

TASKS = {"charrnn": "#0072B2", "mocap": "#E69F00"}


@dataclass(frozen=True)
class Networks:
    """The networks of a task, each at the step of its lowest validation loss."""

    losses: list[float]
    spectra: list[lyap.SpectrumRecord]

    def values(self, statistic: str) -> list[float]:
        """Return a statistic of every network."""
        return [STATISTICS[statistic](spectrum) for spectrum in self.spectra]

    def correlation(self, statistic: str) -> Correlation:
        """Return its rank correlation with the loss."""
        return rank_correlation(self.values(statistic), self.losses)


def load(task: str, name: str, output: Path) -> Networks:
    """Read the study that a task left under a name.

    Raises:
        click.ClickException: It has not been run.
    """
    database = output / f"{task}.db"
    missing = click.ClickException(
        f"{database} holds no finished study {name!r}: run python -m studies.{task} with "
        f"--output {output} first."
    )
    if not database.exists():
        raise missing
    storage = optuna.storages.RDBStorage(f"sqlite:///{database.as_posix()}")
    if name not in optuna.get_all_study_names(storage):
        raise missing
    study = optuna.load_study(study_name=name, storage=storage)
    trials = complete_trials(study)
    if len(trials) < 3:
        raise missing
    spectra = spectra_by_step(study)
    return Networks(
        losses=[trial.values[0] for trial in trials],
        spectra=[spectra[trial.number][best_step(trial)] for trial in trials],
    )


def table(networks: dict[str, Networks]) -> str:
    """Return the rank correlations in Markdown."""
    lines = [
        "| statistic | " + " | ".join(networks) + " |",
        "| --- |" + " ---: |" * len(networks),
    ]
    for statistic in STATISTICS:
        cells = [str(n.correlation(statistic)) for n in networks.values()]
        lines.append(f"| {statistic} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(networks: dict[str, Networks]) -> go.Figure:
    """Draw every statistic against the loss, one row for each task."""
    figure = make_subplots(
        len(networks),
        len(STATISTICS),
        shared_yaxes=True,
        subplot_titles=[*STATISTICS],
        horizontal_spacing=0.014,
        vertical_spacing=0.13,
    )
    for row, (task, group) in enumerate(networks.items(), start=1):
        for column, statistic in enumerate(STATISTICS, start=1):
            figure.add_scatter(
                x=group.values(statistic),
                y=group.losses,
                mode="markers",
                marker={"color": TASKS[task], "size": 6},
                showlegend=False,
                row=row,
                col=column,
            )
            rho = group.correlation(statistic).rho
            title = "does not vary" if math.isnan(rho) else f"ρ = {rho:+.2f}"
            figure.update_xaxes(
                title={"text": title, "standoff": 4},
                nticks=3,
                tickangle=0,
                showticklabels=not math.isnan(rho),
                row=row,
                col=column,
            )
        figure.update_yaxes(title_text=f"{task}: lowest validation loss", row=row, col=1)
        if max(group.losses) > 5 * min(group.losses) > 0:
            figure.update_yaxes(type="log", row=row)
    figure.update_annotations(font_size=12)
    figure.update_layout(
        template="plotly_white",
        width=1300,
        height=540,
        margin={"t": 40, "b": 50, "l": 70, "r": 20},
        font_size=11,
    )
    return figure


def draw_correlations(networks: dict[str, Networks]) -> go.Figure:
    """Draw the rank correlations with their 95 % intervals."""
    figure = go.Figure()
    for place, (task, group) in enumerate(networks.items()):
        found = [group.correlation(statistic) for statistic in STATISTICS]
        figure.add_scatter(
            x=[c.rho for c in found],
            y=[i + 0.16 * (2 * place - 1) for i in range(len(found))],
            error_x={
                "array": [c.high - c.rho for c in found],
                "arrayminus": [c.rho - c.low for c in found],
            },
            mode="markers",
            marker={"color": TASKS[task], "size": 9},
            name=f"{task}, {len(group.losses)} networks",
        )
    figure.add_vline(x=0, line={"color": "#888888", "dash": "dash", "width": 1})
    figure.update_xaxes(
        title_text="rank correlation with the lowest validation loss", range=[-1.05, 1.05]
    )
    figure.update_yaxes(
        tickvals=list(range(len(STATISTICS))), ticktext=[*STATISTICS], autorange="reversed"
    )
    figure.update_layout(
        template="plotly_white",
        width=800,
        height=420,
        margin={"t": 30, "b": 60, "l": 190, "r": 20},
        legend={"orientation": "h", "y": 1.1},
    )
    return figure


@click.command()
@options.scale
@options.output
@click.option("--charrnn", metavar="NAME", help="Study in charrnn.db  [default: charrnn-SCALE]")
@click.option("--mocap", metavar="NAME", help="Study in mocap.db  [default: mocap-SCALE]")
def main(scale: str, output: Path, charrnn: str | None, mocap: str | None) -> None:
    """Reproduce Figure 7 of the paper from the databases of charrnn and mocap."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = {"charrnn": charrnn, "mocap": mocap}
    networks = {task: load(task, name or f"{task}-{scale}", output) for task, name in names.items()}
    click.echo("Rank correlation with the lowest validation loss (95 % interval):\n")
    click.echo(table(networks))
    draw(networks).write_html(output / "spectrum_statistics.html")
    draw_correlations(networks).write_html(output / "spectrum_statistics-correlations.html")
    click.echo(f"\nFigures: {output / 'spectrum_statistics.html'} and -correlations.html")


if __name__ == "__main__":
    main()
