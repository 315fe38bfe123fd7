"""Train every configuration of a task to its end, and record what pruners could have known.

    python -m studies.recordings adding copying --jobs 2
    python -m studies.recordings wide_motion wide_copying --data FOLDER

Trials go to an Optuna study in ``OUTPUT/recordings.db`` as they end; the same command goes on with
what is missing, and then writes ``OUTPUT/TASK.json.gz``.
"""

import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial
from tqdm import tqdm

from lyap_optuna.replay import Recording
from studies.recordings._training import Outcome, configurations, train
from studies.recordings.tasks import TASKS


def store(
    study: optuna.Study,
    outcome: Outcome,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
) -> None:
    """Add a trained configuration to the study; NaN at the end is a failed trial, as in Optuna."""
    value = outcome.losses[max(outcome.losses)]
    attributes: dict[str, Any] = {"configuration": outcome.number, "seconds": outcome.seconds}
    for i, (state, series) in enumerate(outcome.readouts.items()):
        attributes["lyapunov:readouts" if i == 0 else f"lyapunov:readouts:{state}"] = series
    failed = math.isnan(value)
    trial = create_trial(
        state=TrialState.FAIL if failed else TrialState.COMPLETE,
        value=None if failed else value,
        params=params,
        distributions=distributions,
        intermediate_values=outcome.losses,
        user_attrs=attributes,
    )
    if trial.datetime_complete is not None:  # so that the recording holds how long it trained
        took = timedelta(seconds=outcome.seconds["training"])
        trial.datetime_start = trial.datetime_complete - took
    study.add_trial(trial)


@click.command()
@click.argument("tasks", nargs=-1, required=True, type=click.Choice([*TASKS]))
@click.option(
    "--trials", type=click.IntRange(min=1), help="By default 80, and 90 of the wide tasks."
)
@click.option("--jobs", default=1, show_default=True, help="Trials trained at a time.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder that holds cmu_mocap.tar.xz (motion, wide_motion) and war_and_peace.txt.xz "
    "(wide_text); else they are downloaded.",
)
@click.option(
    "--output",
    default=Path("recordings"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
)
def main(
    tasks: tuple[str, ...], trials: int | None, jobs: int, data: Path | None, output: Path
) -> None:
    """Record TASKS: every configuration trained to its end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    output.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{output / 'recordings.db'}"
    for name in tasks:
        task = TASKS[name]
        n = task.trials if trials is None else trials
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
        study.set_user_attr("kind", task.kind)
        study.set_user_attr("description", task.description)
        study.set_user_attr("states", list(task.states))
        try:
            drawn = configurations(name, n, data)
        except (FileNotFoundError, ImportError, ValueError) as error:
            raise click.ClickException(str(error)) from None
        done = {t.user_attrs["configuration"] for t in study.get_trials(deepcopy=False)}
        missing = [i for i in range(n) if i not in done]
        with (
            ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool,
            tqdm(total=n, initial=n - len(missing), desc=name) as bar,
        ):
            futures = [pool.submit(train, name, i, drawn[i][0], data) for i in missing]
            try:
                for future in as_completed(futures):
                    outcome = future.result()
                    store(study, outcome, *drawn[outcome.number])
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        recording = Recording.from_study(study)
        path = output / f"{name}.json.gz"
        recording.save(path)
        click.echo(f"{path}: {recording.summary()}")


if __name__ == "__main__":
    main()
