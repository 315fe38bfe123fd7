"""The SQL in ``docs/databases.md`` runs on each database and answers what it says."""

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from _networks import spectrum_of

import lyap_optuna as lyap

optuna.logging.set_verbosity(optuna.logging.WARNING)

DOC = Path(__file__).parent.parent / "docs" / "databases.md"
QUERIES = re.findall(r"```sql\n-- (.*?)\n(.*?);\n```", DOC.read_text(), re.DOTALL)
DIALECTS = {"SQLite": "sqlite", "PostgreSQL": "postgresql", "MariaDB, MySQL": "mysql"}


@pytest.fixture
def study(database_url):
    """Trials on both sides of chaos; one of them pruned, and another study beside them."""
    rng = np.random.default_rng(0)
    optuna.create_study(study_name="other", storage=database_url).ask()
    study = optuna.create_study(
        study_name="tune",
        storage=database_url,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    for number in range(6):
        trial = study.ask()
        rate = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        for step in range(3):
            if step:
                trial.report(1.0 / step, step)
            exponents = np.sort(rng.normal(-0.3 + 4 * rate * step, 0.4, size=8))[::-1]
            lyap.DatabaseSink().write(trial, step, {"rnn": spectrum_of(exponents.tolist())})
        if number == 2:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, 10 * rate)
    return study


def _chaos(study, spectra):
    values = defaultdict(list)
    for s in spectra:
        trial = study.trials[s.trial_number]
        if s.step == 1 and trial.state == optuna.trial.TrialState.COMPLETE:
            values["chaotic" if s.max > 0 else "stable"].append(trial.value)
    return [(name, len(v), np.mean(v)) for name, v in sorted(values.items())]


def _displacement(study, spectra):
    mean = {(s.trial_number, s.step): s.mean for s in spectra}
    found = [
        (t.number, mean[t.number, 1] - mean[t.number, 0], t.value)
        for t in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    ]
    return sorted(found, key=lambda row: -row[1])


def _rates(study, spectra):
    found = [(study.trials[s.trial_number].params["lr"], s.step, s.max) for s in spectra]
    return sorted(row for row in found if row[2] > 0)


def _losses(study, spectra):
    trials = study.trials
    return [
        (s.trial_number, s.step, trials[s.trial_number].intermediate_values[s.step], s.max, s.mean)
        for s in spectra
        if s.step > 0
    ]


def _positive(study, spectra):
    found = [(s.trial_number, s.step, [e for e in s.exponents if e > 0]) for s in spectra]
    return [(n, step, len(e), sum(e)) for n, step, e in found if e]


def _counts(study, spectra):
    times = [s.created_at.replace(tzinfo=None) for s in spectra]
    return [("tune", len(spectra), min(times), max(times))]


ANSWERS = {
    "Did trials that began chaotic": _chaos,
    "How far had training moved": _displacement,
    "Which learning rates": _rates,
    "What loss was reported": _losses,
    "how many exponents are positive": _positive,
    "How many spectra does each study": _counts,
}


def _answer(question):
    (answer,) = [f for part, f in ANSWERS.items() if part in question]
    return answer


def test_every_query_of_the_page_is_known():
    assert len(QUERIES) == 8
    assert {_answer(question) for question, _ in QUERIES} == set(ANSWERS.values())


def test_the_queries_answer_what_they_say(study, database_url):
    spectra = lyap.load_spectra(study)
    assert len(spectra) == 18
    backend = sa.make_url(database_url).get_backend_name()
    run = 0
    engine = sa.create_engine(database_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        for question, query in QUERIES:
            if DIALECTS.get(question.partition(":")[0], backend) != backend:
                continue
            run += 1
            rows = connection.exec_driver_sql(query).all()
            expected = _answer(question)(study, spectra)
            assert len(rows) == len(expected), question
            for row, answer in zip(rows, expected, strict=True):
                for found, value in zip(row, answer, strict=True):
                    if isinstance(value, float):
                        assert found == pytest.approx(value, rel=1e-9), question
                    else:  # SQLite has times as text
                        assert str(found) == str(value), question
    assert run == 6
