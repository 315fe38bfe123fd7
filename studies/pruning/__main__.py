"""One table: what each pruner spent and found on the recorded studies.

    python -m studies.pruning                 # everything, two processes
    python -m studies.pruning --orders 3 --ours 3 --ablations 3 --thawing 3 adding language
    python -m studies.pruning --constants adding motion --ours 3

Replays are added to ``OUTPUT/replays.jsonl`` as they end; the same command goes on with what is
missing. ``OUTPUT/tables.md`` holds the tables and ``OUTPUT/replay.html`` the figure.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import optuna
from tqdm import tqdm

import lyap_optuna as lyap
from lyap_optuna._files import write_whole
from lyap_optuna.replay import (
    REGRET_AT,
    Calibration,
    Interval,
    PrunerSummary,
    Recording,
    Replay,
    compare_pruners,
    default_pruners,
    replay_freeze_thaw,
    summarize,
)
from lyap_optuna.replay._compare import Compared
from lyap_optuna.visualization import plot_replay
from studies.pruning import constants
from studies.pruning.recorded import DATA, load

OURS = "LyapunovPruner"
THAW = "freeze_thaw"
KEPT_OUT = ("wide_digits", "wide_text")
"""Recordings that the rule was never tried on before it was committed."""

ORDER = (
    "adding",
    "adding_tanh",
    "copying",
    "delayed_digits",
    "language",
    "lorenz96",
    "motion",
    "temporal_order",
    "wide_copying",
    "wide_motion",
    *KEPT_OUT,
)


def replay_all(
    recording: Recording,
    pruners: dict[str, Compared],
    orders: dict[str, int],
    jobs: int,
    output: Path,
    label: str,
) -> dict[str, list[Replay]]:
    """Replay with a progress bar."""
    with tqdm(desc=label, unit="replay") as bar:

        def advance(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        return compare_pruners(
            recording,
            pruners,
            orders=orders,
            jobs=jobs,
            results=output / "replays.jsonl",
            progress=advance,
        )


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of a - b over orders and its 95 % interval (Student's t)."""
    from scipy.stats import ttest_1samp

    difference = np.array(a) - np.array(b)
    mean = float(difference.mean())
    if len(difference) < 2 or np.ptp(difference) == 0:
        return mean, mean, mean
    interval = ttest_1samp(difference, 0.0).confidence_interval(0.95)
    return mean, float(interval.low), float(interval.high)


def markdown(rows: Iterable[Sequence[object]], header: Sequence[str]) -> str:
    """Return a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def percent(value: float) -> str:
    """Return a share; never, where it is infinite."""
    return "never" if np.isinf(value) else f"{value:.0%}"


def with_interval(interval: Interval) -> str:
    """Return a share and where it may lie."""
    return f"{percent(interval.value)} ({percent(interval.lower)} to {percent(interval.upper)})"


def overview(summaries: Sequence[PrunerSummary], cell: Callable[[PrunerSummary], str]) -> str:
    """Return a table with a row for each pruner and a column for each study."""
    studies = list(dict.fromkeys(s.recording for s in summaries))
    cells = {(s.pruner, s.recording): cell(s) for s in summaries}
    pruners = dict.fromkeys(s.pruner for s in summaries if "without" not in s.pruner)
    rows = [(name, *(cells[name, study] for study in studies)) for name in pruners]
    return markdown(rows, ("", *studies))


def spent_and_success(summary: PrunerSummary) -> str:
    """Return median epochs spent and success, both in percent."""
    return f"{100 * summary.epochs_spent.value:.0f} / {100 * summary.success.value:.0f}"


def found_when(summary: PrunerSummary) -> str:
    """Return the share of epochs at which a winner is found: median and ninth decile."""
    ends = (summary.found_by.value, summary.found_by_late.value)
    return " / ".join("never" if np.isinf(end) else f"{end:.2f}" for end in ends)


def main_table(summaries: Sequence[PrunerSummary]) -> str:
    """Return what each pruner spent and found."""
    rows = []
    for s in summaries:
        against = "" if s.epochs_against_median is None else f"{s.epochs_against_median:.2f}"
        spent, success = s.epochs_spent, s.success
        rows.append(
            (
                s.recording,
                s.pruner,
                s.n_orders,
                f"{spent.value:.1%} ({spent.lower:.0%} to {spent.upper:.0%})",
                against,
                f"{success.value:.0%} ({success.lower:.0%} to {success.upper:.0%})",
                f"{s.regret.value:.2g} (to {s.regret.upper:.2g})",
                f"{s.wrongly_pruned.value:.0f}",
                "" if s.coverage is None else percent(s.coverage),
                f"{s.seconds.value:.2g}",
            )
        )
    header = (
        "study",
        "pruner",
        "orders",
        "epochs spent",
        "times the median rule's",
        "succeed",
        "regret",
        "best 5 % pruned",
        "80 % interval holds",
        "seconds deciding",
    )
    return markdown(rows, header)


def found_table(summaries: Sequence[PrunerSummary]) -> str:
    """Return when each pruner had ended its first winner, and how good its best was by then."""
    rows = [
        (
            s.recording,
            s.n_winners,
            s.pruner,
            s.n_orders,
            with_interval(s.found_by),
            with_interval(s.found_by_late),
            *(f"{regret.value:.2g}" for regret in s.regret_at),
        )
        for s in summaries
    ]
    header = (
        "study",
        "winners",
        "pruner",
        "orders",
        "found by, in half of the orders",
        "in nine of ten",
        *(f"regret at {share:.0%}" for share in REGRET_AT),
    )
    return markdown(rows, header)


def calibration_table(summaries: Sequence[PrunerSummary]) -> str:
    """Return how often the interval at the decision that pruned held, by study and pooled."""
    found = [(s.recording, s.pruner, s.calibration) for s in summaries if s.calibration.n]
    pooled: dict[str, Calibration] = {}
    for _, pruner, calibration in found:
        pooled[pruner] = pooled.get(pruner, Calibration()) + calibration
    found += [("all", pruner, calibration) for pruner, calibration in pooled.items()]
    rows = [
        (study, pruner, c.n, f"{c.held / c.n:.0%}", c.better, c.worse, f"{c.score / c.n:.2f}")
        for study, pruner, c in found
    ]
    header = (
        "study",
        "pruner",
        "pruned with an interval",
        "held",
        "ended better",
        "ended worse",
        "interval score",
    )
    return markdown(rows, header)


def ablation_table(replays: dict[str, dict[str, list[Replay]]]) -> str:
    """Return what each kind of evidence adds: with all kinds, less without it."""
    rows = []
    for name, by_pruner in replays.items():
        for pruner, without in by_pruner.items():
            if not pruner.startswith(f"{OURS} without"):
                continue
            ours = by_pruner[OURS][: len(without)]
            mean, low, high = paired(
                [r.epochs_spent for r in ours], [r.epochs_spent for r in without]
            )
            pairs = list(zip(ours, without, strict=True))
            won = sum(r.succeeded and not other.succeeded for r, other in pairs)
            lost = sum(other.succeeded and not r.succeeded for r, other in pairs)
            rows.append(
                (
                    name,
                    pruner.removeprefix(f"{OURS} without "),
                    len(without),
                    f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                    won,
                    lost,
                )
            )
    header = (
        "study",
        "kind",
        "orders",
        "epochs, points",
        "orders that succeed only with it",
        "only without it",
    )
    return markdown(rows, header)


def state_table(names: Sequence[str]) -> str:
    """Return the skill of the exponents of each state, over all trials."""
    rows = []
    for name in names:
        recording = load(name)
        if len(recording.states) < 2:
            continue
        for kind in ("exponents", "displacement"):
            cells: dict[str, list[str]] = {}
            for state in recording.states:
                study = recording.with_state(state).to_study()
                skills = lyap.prediction_skill(study, steps=(1, 2, 4, 8), evidence=[kind])
                cells[state] = [
                    "–" if s.rank_correlation is None else f"{s.rank_correlation:.2f}"
                    for s in skills
                    if s.evidence == kind
                ]
            rows.append((name, kind, *(" ".join(cells[state]) for state in ("hidden", "full"))))
    return markdown(rows, ("study", "evidence", "hidden state", "full state"))


def timing_table() -> str:
    """Return what a decision costs, beside a study of that size in memory."""
    rows = []
    for n in (200, 1_000):
        recording = load("adding")
        base = [t for t in recording.trials if np.isfinite(t.final)]
        trials = [
            replace(t, final=t.final * (1 + 1e-6 * i))
            for i, t in enumerate((base * (n // len(base) + 1))[:n])
        ]
        study = Recording("timing", "minimize", trials, recording.state).to_study()
        pruner = lyap.LyapunovPruner()
        fits: list[float] = []
        decisions: list[float] = []
        for number in range(6):
            recorded = base[number]
            trial = study.ask(dict(recorded.distributions))
            for step in range(1, 9):
                trial.report(recorded.values[step], step)
                frozen = study._storage.get_trial(trial._trial_id)
                begin = time.perf_counter()
                pruner.prune(study, frozen)
                (decisions if number else fits).append(time.perf_counter() - begin)
        rows.append(
            (
                n,
                f"{1000 * np.median(decisions):.1f} (slowest {1000 * max(decisions):.0f})",
                f"{1000 * np.median(fits):.0f} (slowest {1000 * max(fits):.0f})",
            )
        )
    return markdown(rows, ("COMPLETE trials", "decision, ms", "decision with a refit, ms"))


@click.command()
@click.argument("names", nargs=-1)
@click.option("--orders", default=100, show_default=True, help="Orders for Optuna's pruners.")
@click.option("--ours", default=100, show_default=True, help="Orders for ours.")
@click.option("--ablations", default=30, show_default=True, help="Orders without each evidence.")
@click.option("--thawing", default=30, show_default=True, help="Orders for freeze_thaw; 0: none.")
@click.option(
    "--constants",
    "only_constants",
    is_flag=True,
    help="Only print what halving and doubling each constant of the rule changes.",
)
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@click.option(
    "--output",
    default=Path("pruning"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
)
def main(
    names: tuple[str, ...],
    orders: int,
    ours: int,
    ablations: int,
    thawing: int,
    only_constants: bool,
    jobs: int,
    output: Path,
) -> None:
    """Replay the recordings NAMES (all by default) with every pruner: the tables."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recorded = sorted(path.name.removesuffix(".json.gz") for path in DATA.glob("*.json.gz"))
    if unknown := sorted(set(names) - set(recorded)):
        raise click.UsageError(f"No recording {unknown}; there are {', '.join(recorded)}.")
    chosen = [n for n in ORDER if n in recorded and (not names or n in names)]
    if only_constants:
        rows = constants.table([load(name) for name in chosen], ours)
        click.echo(markdown(rows, ("constant", "value", "halved", "doubled")))
        return
    output.mkdir(parents=True, exist_ok=True)
    pruners: dict[str, Compared] = {**default_pruners()}
    if thawing:
        pruners[THAW] = replay_freeze_thaw
    counts = {
        name: thawing
        if name == THAW
        else ours
        if name == OURS
        else ablations
        if name.startswith(OURS)
        else orders
        for name in pruners
    }
    summaries: list[PrunerSummary] = []
    replays: dict[str, dict[str, list[Replay]]] = {}
    for name in chosen:
        recording = load(name)
        replays[name] = replay_all(recording, pruners, counts, jobs, output, name)
        summaries += summarize(recording, replays[name])
    text = "## Epochs spent, % / orders that succeed, %\n\n"
    text += overview(summaries, spent_and_success)
    text += "\n## Found by: median / ninth decile\n\n" + overview(summaries, found_when)
    text += "\n## What each pruner spent and found\n\n" + main_table(summaries)
    text += "\n## When a winner is found\n\n" + found_table(summaries)
    text += "\n## The 80 % interval at the decision that pruned\n\n"
    text += calibration_table(summaries)
    text += "\n## What each kind of evidence adds\n\n" + ablation_table(replays)
    text += "\n## Which state of an LSTM\n\n" + state_table(chosen)
    text += "\n## What a decision costs\n\n" + timing_table()
    write_whole(output / "tables.md", text)
    figure = plot_replay([s for s in summaries if "without" not in s.pruner])
    figure.write_html(output / "replay.html")
    click.echo(text)
    click.echo(f"{output / 'tables.md'}, {output / 'replay.html'}")


if __name__ == "__main__":
    main()
