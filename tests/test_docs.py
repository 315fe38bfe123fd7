"""Every code block of the README and of the docs runs, or is checked as far as a test can go.

Python blocks of a page run from top to bottom in one namespace; blocks that begin with the name of
a file become that file, for the commands that follow. Code cells and notebooks run when Sphinx
builds the pages (``make docs``).
"""

import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import optuna
import pytest
import torch
from _pages import (
    DOCS,
    ROOT,
    SHOWN,
    Block,
    blocks,
    check_campaign,
    check_command,
    commands,
    run_command,
)
from _studies import specs, study_of
from click.testing import CliRunner

import lyap_optuna as lyap
from studies import tutorial

README = "../README.md"
PAGES = sorted([README, *(path.relative_to(DOCS).as_posix() for path in DOCS.glob("*.md"))])
RUN_AS_WRITTEN = ("tutorial.md", "cluster.md")  # in tests of their own
OF_LIBRARIES = ("libraries.md",)  # by `make test-libraries`
RUN_COMMANDS = (*RUN_AS_WRITTEN, "freeze_thaw.md")
SLOW = ("frameworks.md", "freeze_thaw.md")


def _readme(folder: Path) -> dict[str, Any]:
    return {
        "make_model": lambda trial: torch.nn.GRU(2, trial.suggest_int("units", 2, 4)),
        "some_inputs": torch.randn(5, 2, 2),
        "train": lambda model: None,
        "validate": lambda model: float(model.hidden_size),
        "epochs": 2,
    }


def _databases(folder: Path) -> dict[str, Any]:
    model, inputs = torch.nn.GRU(2, 3), torch.randn(5, 2, 2)
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}")
    trial = study.ask()
    lyap.LyapunovProbe(model, inputs, full_spectrum=True).report(trial, 1.0, 1)
    return {"lyap": lyap, "model": model, "inputs": inputs, "study": study}


def _state(folder: Path) -> dict[str, Any]:
    model, inputs = torch.nn.LSTM(2, 3), torch.randn(5, 2, 2)
    return {"lyap": lyap, "model": model, "inputs": inputs, "trial": optuna.create_study().ask()}


def _campaigns(folder: Path) -> dict[str, Any]:
    def train_and_validate(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
        loss = model(torch.randn(5, 2, 2))[0].square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    model = torch.nn.GRU(2, 3)
    return {
        "Path": Path,
        "optuna": optuna,
        "torch": torch,
        "make_model": lambda trial: model,
        "make_optimizer": lambda trial: torch.optim.Adam(model.parameters()),
        "train_and_validate": train_and_validate,
    }


# What a page takes for granted.
GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    README: _readme,
    "index.md": _readme,
    "campaigns.md": _campaigns,
    "dashboard.md": _databases,
    "databases.md": _databases,
    "faq.md": lambda folder: {"optuna": optuna, "study": study_of(specs("plateau", 20))},
    "limits.md": lambda folder: {"lyap": lyap, "study": study_of(specs("plateau", 20))},
    "state.md": _state,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in; what pages register or start is undone or caught."""
    from lyap_optuna.dynamics._registry import _ARCHITECTURES

    before = dict(_ARCHITECTURES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    monkeypatch.setenv("OPTUNA_STORAGE", f"sqlite:///{tmp_path / 'served.db'}")
    monkeypatch.setattr(optuna.storages, "run_grpc_proxy_server", lambda *args, **options: None)
    yield tmp_path
    _ARCHITECTURES.clear()
    _ARCHITECTURES.update(before)


def _handle(block: Block, page: str, names: dict[str, Any], folder: Path) -> str:
    """Run or check one block; return what a command printed."""
    if block.file is not None:
        (folder / block.file).write_text(block.code)
    if block.language == "python":
        if block.file is None:
            exec(compile(block.code, page, "exec"), names)  # our own documentation
    elif block.language == "shell":
        handle = run_command if page in RUN_COMMANDS else lambda words, _: check_command(words)
        return "".join(handle(words, folder) for words in commands(block))
    elif block.language == "yaml":
        check_campaign(block, folder)
    else:
        language = block.language or ("text" if page == README else "")
        assert language in SHOWN, f"{page}: who runs a block of {language!r}?"
    return ""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page in SLOW else ())
        for page in PAGES
        if page not in (*RUN_AS_WRITTEN, *OF_LIBRARIES)
    ],
)
def test_code_blocks_run(page: str, folder: Path) -> None:
    names = GIVEN.get(page, lambda folder: {})(folder)
    for block in blocks(page):
        _handle(block, page, names, folder)
    if page == "campaigns.md":
        study = optuna.create_study()
        first = study.ask()
        names["objective"](first)
        study.enqueue_trial({}, user_attrs={"lyapunov:repeats": first.number})
        again = study.ask()
        Path(f"checkpoints/{first.number}.pt").replace(f"checkpoints/{first.number}.10")
        state = torch.load(f"checkpoints/{first.number}.10")
        torch.save((*state[:2], 7), f"checkpoints/{first.number}.pt")
        names["objective"](again)
        assert sorted(study.trials[again.number].intermediate_values) == [7, 8, 9]


def test_what_pages_print_is_what_they_say(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for page, said in (
        ("architectures.md", "LyapunovReadout("),
        ("limits.md", "loss "),
        ("models.md", ""),
    ):
        names = GIVEN.get(page, lambda folder: {})(folder)
        for block in blocks(page):
            _handle(block, page, names, folder)
        printed = capsys.readouterr().out
        assert said in printed
        if page != "limits.md":
            shown = [block.code for block in blocks(page) if block.language == "text"]
            assert shown
            assert all(text in printed for text in shown)


def test_the_reference_has_every_public_name() -> None:
    listed = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    for module in (lyap, lyap.dynamics, lyap.visualization):
        for name in set(module.__all__) - {"__version__"}:
            assert re.search(rf"^ +{name}$|:: {name}$", listed, re.MULTILINE), name


def test_the_commands_in_indented_blocks_are_there() -> None:
    found = re.compile(r"^    ((?:make|lyap-optuna|python -m) .*?)(?: +#.*)?$", re.MULTILINE)
    pages = [(DOCS / page).read_text().replace("\\\n", " ") for page in PAGES]
    lines = {line for page in pages for line in found.findall(page)}
    assert len(lines) > 5
    for line in sorted(lines):
        check_command(shlex.split(line))


@pytest.mark.slow
def test_the_tutorial_from_top_to_bottom(folder: Path) -> None:
    """The command that writes the page runs all of it, here with few trials."""
    page, before = folder / "tutorial.md", (DOCS / "tutorial.md").read_text()
    page.write_text(before)
    options = ["--seeds", "1", "--trials", "10", "--output", str(folder), "--write", str(page)]
    CliRunner().invoke(tutorial.main, options, catch_exceptions=False)
    text = page.read_text()
    written = re.compile(r"```text\n.*?```|begin -->.*?<!-- end -->", re.DOTALL)
    assert written.sub("", text) == written.sub("", before)
    assert len(re.findall(r"```text\nbest loss \d\.\d{3}, \d+ of 80 epochs\n```", text)) == 2
    assert re.search(r"^Step: the last.*^Trial 9 (was pruned|ran to its end)", text, re.M | re.S)
    assert re.search(r"```text\nloss .*^exponents ", text, re.M | re.S)
    assert re.findall(r"^\| (\d) \|(?: \d\.\d{3} \|){8}", text, re.M) == list("0123456789")
    found = re.findall(r"^\| (.+) \| \d of 1 \| 0? \| (\d+) \|", text, re.M)
    assert [name for name, _ in found] == list(tutorial.SEARCHES)
    assert (found[0][1], found[-1][1]) == ("80", "40")
    assert (folder / "exponents.html").stat().st_size > 10_000
    study = optuna.load_study(study_name="lyapunov", storage=f"sqlite:///{folder}/study.db")
    assert len(study.trials) == 10
    assert study.get_trials(states=[optuna.trial.TrialState.PRUNED])
    (serve,) = [
        words for block in blocks(page) for words in commands(block) if "dashboard" in words
    ]
    assert "Optuna Dashboard" in run_command(serve, folder)


@pytest.mark.slow
def test_the_cluster_page_on_a_cluster(
    folder: Path, new_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")
    url = new_database("postgresql")
    said = ""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        here = {
            "tcp://scheduler:8786": cluster.scheduler_address,
            "postgresql+psycopg://me:${DB_PASSWORD}@db.example/optuna": url,
            "postgresql+psycopg://me@db.example/optuna": url,
        }
        for block in blocks("cluster.md"):
            code = block.code
            for there, local in here.items():
                code = code.replace(there, local)
            page = "slurm" if "slurm" in code else "cluster.md"  # no job queue here: only checked
            said += _handle(Block(block.language, code), page, {}, folder)
    assert "8 COMPLETE" in said or "PRUNED" in said
    trials = optuna.load_study(study_name="recall", storage=url).trials
    assert len(trials) == 8
    assert all("-1" in trial.user_attrs["lyapunov:readouts"] for trial in trials)
