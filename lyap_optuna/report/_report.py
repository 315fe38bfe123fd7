"""The report of a study as one HTML file."""

import os
from collections.abc import Sequence
from typing import Any

from optuna.study import Study

from lyap_optuna._files import write_whole
from lyap_optuna.report._page import MAX_BYTES, Section, Table, page
from lyap_optuna.report._summary import StudySummary, summarize
from lyap_optuna.report._tables import (
    TOO_FEW,
    in_a_cell,
    interval,
    short,
    skill_table,
)
from lyap_optuna.visualization import _prediction_skill, _predictions
from lyap_optuna.visualization._figures import FIGURES, Numbers
from lyap_optuna.visualization._publication import MAX_BYTES as FIGURE_BYTES
from lyap_optuna.visualization._publication import PREFIX, published_figures

_RANKED = 20
_LONGEST = 4000  # characters of a trial's hyperparameters: of 20 trials, a tenth of the page
"""Trials of the ranking that the page lists."""

_RANKING_COLUMNS = {
    "rank": "rank",
    "number": "trial",
    "state": "state",
    "last_step": "last step",
    "value": "value",
    "predicted_then": "predicted then",
    "predicted_value": "predicted now",
    "interval": "80 % interval now",
    "max": "max λ",
    "mean": "mean λ",
}


def write_report(
    study: Study,
    path: str | os.PathLike[str],
    *,
    notes: Sequence[str] = (),
    summary: StudySummary | None = None,
) -> None:
    """Write what a study found as one HTML file: skill, pruning, ranking, figures, caveats.

    The file needs nothing else, fetches nothing, and takes less than a megabyte. It follows the
    browser's choice of light or dark, and has a button for the other.

    Args:
        study: A study of any storage, while it runs or afterwards.
        path: The file; written whole or not at all.
        notes: Paragraphs of your own, at the top; taken literally.
        summary: What :func:`~lyap_optuna.report.summarize` says of the study, where it is at hand.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import lyap_optuna as lyap, optuna
        >>> study = optuna.create_study()
        >>> study.add_trial(optuna.create_trial(value=0.5, intermediate_values={0: 0.9, 1: 0.5}))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "report.html"
        ...     lyap.write_report(study, path)
        ...     path.stat().st_size < 1_000_000
        True
    """
    write_whole(path, report_page(study, notes=notes, summary=summary))


def report_page(
    study: Study, *, notes: Sequence[str] = (), summary: StudySummary | None = None
) -> str:
    """Return the page that :func:`write_report` writes.

    Args:
        study: As there.
        notes: As there.
        summary: As there.

    Returns:
        The page as HTML text.

    Example:
        >>> import optuna
        >>> from lyap_optuna.report import report_page
        >>> report_page(optuna.create_study())[:15]
        '<!DOCTYPE html>'
    """
    summary = summarize(study) if summary is None else summary
    at_hand = {
        _predictions.FIGURE.id: _predictions.predictions_in(study, summary.ranking) or None,
        _prediction_skill.FIGURE.id: _prediction_skill.skill_lines(summary.skills) or None,
    }
    numbers = Numbers(study, at_hand)
    caveats = Section("Caveats", points=summary.caveats)
    most = FIGURE_BYTES
    while True:
        figures = _figures(numbers, most)
        sections = [*_words(summary), *figures, *_ranking(study, summary), caveats]
        text = page(summary.name, [*notes, summary.overview], sections)
        if len(text.encode()) < MAX_BYTES or most < FIGURE_BYTES / 8:
            break
        most //= 2
    return text


def _words(summary: StudySummary) -> list[Section]:
    if summary.sign is None:
        return [Section("What pruning saved and lost", [summary.pruning_in_words])]
    columns, rows, legend = skill_table(summary)
    if not rows:
        return [
            Section("What predicts the final value", [TOO_FEW]),
            Section("What pruning saved and lost", [summary.pruning_in_words]),
        ]
    return [
        Section("What pruning saved and lost", [summary.pruning_in_words]),
        Section(
            "What predicts the final value",
            [*filter(None, [summary.hindsight_in_words]), summary.added_in_words],
            table=Table(columns, rows),
            legend=legend,
        ),
    ]


def _figures(numbers: Numbers, most: int) -> list[Section]:
    drawn = published_figures(numbers, captions=False, max_bytes=most)
    return [
        Section(spec.name, figure=drawn[f"{PREFIX}{spec.id}"], legend=spec.caption, wide=False)
        for spec in FIGURES
        if f"{PREFIX}{spec.id}" in drawn
    ]


def _ranking(study: Study, summary: StudySummary) -> list[Section]:
    if not summary.ranking:
        return []
    params = {t.number: t.params for t in study.get_trials(deepcopy=False)}
    rows: list[dict[str, Any]] = []
    for rank, p in enumerate(summary.ranking[:_RANKED], 1):
        shown = {key: short(getattr(p, key, None)) for key in _RANKING_COLUMNS}
        rows.append(
            {
                **shown,
                "rank": rank,
                "state": p.state.name,
                "interval": interval(p.lower, p.upper),
                "params": in_a_cell(params[p.number], _LONGEST),
            }
        )
    n = len(summary.ranking)
    return [
        Section(
            "The best trials" if n > _RANKED else "All trials, best first",
            table=Table(_RANKING_COLUMNS, rows, below="params"),
            legend=f"{len(rows)} of {n} ranked trials, below each its hyperparameters. COMPLETE "
            "trials stand at their value, all others at what is predicted of them now. Predicted "
            "then: when a pruner last decided on it. λ: exponents in nats/step.",
        )
    ]
