"""One table: what each pruner spent and found on the recorded studies.

    python -m studies.pruning                 # everything, two processes
    python -m studies.pruning --write docs/prediction.md --write README.md
    python -m studies.pruning --orders 3 --others 3 adding language
    python -m studies.pruning --constants adding motion --orders 3

Replays are added to ``OUTPUT/replays.jsonl`` as they end; the same command goes on with what is
missing. ``OUTPUT/tables.md`` holds the tables and ``OUTPUT/replay.html`` the figure.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import optuna
from tqdm import tqdm

import lyap_optuna as lyap
from lyap_optuna._files import write_whole
from lyap_optuna.prediction.evidence import EVIDENCE
from lyap_optuna.replay import (
    REGRET_AT,
    Calibration,
    Choosing,
    Interval,
    PrunerSummary,
    Recording,
    Replay,
    Search,
    compare_pruners,
    default_pruners,
    replay_freeze_thaw,
    summarize,
)
from lyap_optuna.replay._compare import Compared, order_statistic
from lyap_optuna.visualization import plot_replay
from studies.pages import begin, write_block
from studies.pruning import constants
from studies.pruning.recorded import DATA, load

OURS = "LyapunovPruner"
WITHOUT_EXPONENTS = f"{OURS} without exponents, displacement"
THAW = "freeze_thaw"
DYNAMICS = ("exponents", "displacement")
THAW_WITHOUT = f"{THAW} without {', '.join(DYNAMICS)}"
CHOSEN = ", chosen"
"""Behind the name of a search whose next configuration is the model's choice."""
KEPT_OUT = ("wide_digits", "wide_text")
"""Recordings that were not replayed while the rule was chosen."""

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


TITLES = {
    "short": "In short",
    "spent": "Epochs spent, % / orders that succeed, %",
    "found": "Found by: median / ninth decile",
    "all": "What each pruner spent and found",
    "winners": "When a winner is found",
    "intervals": "The 80 % interval at the decision that pruned",
    "exponents": "What exponents and displacement add",
    "thawing": "What they add to freeze_thaw",
    "chosen": "Found by, configurations chosen by the model",
    "kinds": "What each kind of evidence adds",
    "states": "Which state of an LSTM",
    "timing": "What a decision costs",
}
MARK = "python -m studies.pruning"
PLATEAUS = (
    "adding",
    "adding_tanh",
    "copying",
    "delayed_digits",
    "temporal_order",
    "wide_copying",
    "wide_digits",
)
"""Recordings of tasks whose loss stays flat for epochs before it falls."""


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
    """Return a table with a row for each study and a column for each pruner, ours first."""
    cells = {(s.recording, s.pruner): cell(s) for s in summaries}
    counts = {s.pruner: s.n_orders for s in summaries}
    pruners = sorted(counts, key=lambda pruner: pruner.removesuffix(CHOSEN) not in (OURS, THAW))
    rows: list[Sequence[object]] = [("orders", *(counts[pruner] for pruner in pruners))]
    for study in dict.fromkeys(s.recording for s in summaries):
        rows.append((_named(study), *(cells[study, pruner] for pruner in pruners)))
    return markdown(rows, ("", *map(_heading, pruners)))


def variant(pruner: str) -> bool:
    """Return whether a row is of one of the others without some evidence, or with a choice."""
    return "without" in pruner or pruner.endswith(CHOSEN)


def _heading(pruner: str) -> str:
    # The whole names are wider than a page.
    return re.sub("(?<=[a-z])(?=[A-Z(])", " ", pruner.replace("Pruner", "").removesuffix(CHOSEN))


def _named(study: str) -> str:
    return f"*{study}*" if study in KEPT_OUT else study


def spent_and_success(summary: PrunerSummary) -> str:
    """Return median epochs spent and success, both in percent."""
    return f"{100 * summary.epochs_spent.value:.0f} / {100 * summary.success.value:.0f}"


def at(share: float) -> str:
    """Return the share of epochs at which a winner is found."""
    return "never" if np.isinf(share) else f"{share:.2f}"


def found_when(summary: PrunerSummary) -> str:
    """Return the share of epochs at which a winner is found: median and ninth decile."""
    return f"{at(summary.found_by.value)} / {at(summary.found_by_late.value)}"


def short_table(spent: str) -> str:
    """Return, of the table of epochs and success, a row for each search: means over the studies."""
    header, _, _, *rows = [
        [cell.strip(" *") for cell in line.strip()[1:-1].split("|")]
        for line in spent.strip().splitlines()
    ]
    names = {_heading(name): name for name in (*default_pruners(), THAW)}
    lines: list[Sequence[object]] = []
    for column, name in enumerate(header[1:], 1):
        shares = {row[0]: [float(n) for n in row[column].split("/")] for row in rows}
        found = {study: success for study, (_, success) in shares.items()}
        spending = [epochs for epochs, _ in shares.values()]
        flat = [success for study, success in found.items() if study in PLATEAUS]
        easy = [success for study, success in found.items() if study not in PLATEAUS]
        ends = name != _heading(THAW)  # it spends what it is given: half of all epochs here
        lines.append(
            (
                f"`{names.get(name, name)}`",
                f"{np.mean(spending):.0f} %" if ends else "its budget",
                *(f"{np.mean(values):.0f} %" if values else "–" for values in (flat, easy)),
                f"{min(found.values()):.0f} %",
            )
        )
    header = ["search", "epochs spent", "plateaus", "easy tasks", "in the worst study"]
    return markdown(lines, header)


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
    rows: list[Sequence[object]] = []
    pooled: dict[str, list[int]] = {}
    for name, by_pruner in replays.items():
        for pruner, without in by_pruner.items():
            if not pruner.startswith(f"{OURS} without"):
                continue
            ours = by_pruner[OURS][: len(without)]
            mean, low, high = paired(
                [r.epochs_spent for r in ours], [r.epochs_spent for r in without]
            )
            late = [
                order_statistic((r.found_by for r in found), 0.9).value for found in (ours, without)
            ]
            pairs = list(zip(ours, without, strict=True))
            won = sum(r.succeeded and not other.succeeded for r, other in pairs)
            lost = sum(other.succeeded and not r.succeeded for r, other in pairs)
            kind = pruner.removeprefix(f"{OURS} without ")
            pooled[kind] = [
                a + b
                for a, b in zip(pooled.get(kind, [0, 0, 0]), (len(pairs), won, lost), strict=True)
            ]
            rows.append(
                (
                    _named(name),
                    kind,
                    len(without),
                    f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                    " / ".join(at(value) for value in late),
                    f"{won} / {lost}",
                )
            )
    rows += [("all", kind, n, "", "", f"{won} / {lost}") for kind, (n, won, lost) in pooled.items()]
    header = (
        "study",
        "without",
        "orders",
        "epochs, points",
        "found by, ninth decile, with / without",
        "orders that succeed only with / only without",
    )
    return markdown(rows, header)


def thawing_table(replays: dict[str, dict[str, list[Replay]]]) -> str:
    """Return when ``freeze_thaw`` finds a winner with and without exponents and displacement."""
    rows = []
    for name, by_search in replays.items():
        without = by_search[THAW_WITHOUT]
        pair = (by_search[THAW][: len(without)], without)
        # What was never found took more than all epochs.
        mean, low, high = paired(*([min(r.found_by, 1.0) for r in found] for found in pair))
        rows.append(
            (
                _named(name),
                len(without),
                *(
                    " / ".join(
                        at(order_statistic((r.found_by for r in found), share).value)
                        for share in (0.5, 0.9)
                    )
                    for found in pair
                ),
                f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            )
        )
    return markdown(rows, ("study", "orders", "with", "without", "difference, points"))


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


def write_all(pages: Sequence[Path], blocks: dict[str, str]) -> None:
    """Put blocks into the pages that have a place for them.

    Raises:
        ValueError: A page has a place for none.
    """
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found = [name for name in blocks if begin(f"{MARK}: {name}") in text]
        if not found:
            raise ValueError(f"{page} has no place for any of {', '.join(blocks)}.")
        for name in found:
            write_block(page, f"{MARK}: {name}", blocks[name])


def compared(kinds: bool) -> dict[str, Compared]:
    """Return all pruners and searches, of those without one kind of evidence if ``kinds``."""
    searches: dict[str, Search] = {**default_pruners(), THAW: replay_freeze_thaw}
    some = {
        name: make
        for name, make in searches.items()
        if kinds or name == WITHOUT_EXPONENTS or not name.startswith(f"{OURS} without")
    }
    less = [kind for kind in EVIDENCE if kind not in DYNAMICS]
    chosen = (OURS, THAW, "none", "MedianPruner", "HyperbandPruner")
    return {
        **some,
        THAW_WITHOUT: partial(replay_freeze_thaw, evidence=less),
        **{name + CHOSEN: Choosing(searches[name]) for name in chosen},
    }


def tables(
    summaries: Sequence[PrunerSummary], replays: dict[str, dict[str, list[Replay]]], kinds: bool
) -> dict[str, str]:
    """Return every table by its name."""
    main_rows = [s for s in summaries if not variant(s.pruner)]
    spent = overview([s for s in main_rows if s.pruner != "none"], spent_and_success)
    both = (OURS, WITHOUT_EXPONENTS)
    exponents = {name: {p: found[p] for p in both} for name, found in replays.items()}
    return {
        "short": short_table(spent),
        "spent": spent,
        "found": overview(main_rows, found_when),
        "all": main_table(summaries),
        "winners": found_table(summaries),
        "intervals": calibration_table([s for s in summaries if s.pruner == OURS]),
        "exponents": ablation_table(exponents),
        "thawing": thawing_table(replays),
        "chosen": overview([s for s in summaries if s.pruner.endswith(CHOSEN)], found_when),
        **({"kinds": ablation_table(replays)} if kinds else {}),
        "states": state_table(list(replays)),
        "timing": timing_table(),
    }


@click.command()
@click.argument("names", nargs=-1)
@click.option("--orders", default=100, show_default=True, help="Of the pruners and freeze_thaw.")
@click.option(
    "--others",
    default=30,
    show_default=True,
    help="Without exponents, and with configurations chosen by the model.",
)
@click.option("--kinds", is_flag=True, help="Without each kind of evidence, too.")
@click.option(
    "--constants",
    "only_constants",
    is_flag=True,
    help="Only print what halving and doubling each constant of the rule changes.",
)
@click.option(
    "--write",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Page whose tables are replaced: docs/prediction.md, README.md.",
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
    others: int,
    kinds: bool,
    only_constants: bool,
    write: tuple[Path, ...],
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
        rows = constants.table([load(name) for name in chosen], orders)
        block = markdown(rows, ("constant", "value", "halved", "doubled"))
        click.echo(block)
        write_all(write, {"constants": block})
        return
    output.mkdir(parents=True, exist_ok=True)
    pruners = compared(kinds)
    counts = {name: others if variant(name) else orders for name in pruners}
    summaries: list[PrunerSummary] = []
    replays: dict[str, dict[str, list[Replay]]] = {}
    for name in chosen:
        recording = load(name)
        replays[name] = replay_all(recording, pruners, counts, jobs, output, name)
        summaries += summarize(recording, replays[name])
    blocks = tables(summaries, replays, kinds)
    text = "\n".join(f"## {TITLES[name]}\n\n{block}" for name, block in blocks.items())
    write_whole(output / "tables.md", text)
    write_all(write, blocks)
    figure = plot_replay([s for s in summaries if not variant(s.pruner)])
    figure.write_html(output / "replay.html")
    click.echo(text)
    click.echo(f"{output / 'tables.md'}, {output / 'replay.html'}")


if __name__ == "__main__":
    main()
