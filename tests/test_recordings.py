"""The commands that record studies and judge pruners on them, at a size of seconds."""

import dataclasses
import re
from pathlib import Path

import optuna
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lyap_optuna.data import CharacterText
from lyap_optuna.replay import Recording
from studies.pages import END, begin, read_block, write_block
from studies.pruning.__main__ import MARK, short_table
from studies.pruning.__main__ import main as judge
from studies.recordings import _training
from studies.recordings.__main__ import store
from studies.recordings.tasks import TASKS, _wide, wide_motion, wide_text

RECORDABLE = [name for name, task in TASKS.items() if not task.needs_data]
WIDE = [name for name in TASKS if name.startswith("wide_")]
MADE = Path("a folder that nothing is read from")


@pytest.fixture
def made_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Frames and a text in place of the real ones."""
    draw = torch.Generator().manual_seed(0)
    frames = torch.randn(20, 26, 20, generator=draw), torch.randn(12, 26, 20, generator=draw)
    codes = torch.randint(0, 5, (3, 200), generator=draw)
    monkeypatch.setattr(wide_motion, "frames", lambda data: frames)
    monkeypatch.setattr(
        wide_text, "load_war_and_peace", lambda data: CharacterText(*codes, "abcde")
    )
    return MADE


@pytest.mark.parametrize("name", [*RECORDABLE, "wide_motion", "wide_text"])
def test_a_task_is_trained_and_recorded(
    name: str, made_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = dataclasses.replace(TASKS[name], epochs=1)
    monkeypatch.setitem(_training.TASKS, name, task)
    (params, distributions), *_ = _training.configurations(name, 1, made_data)
    outcome = _training.train(name, 0, params, made_data)
    assert list(outcome.losses) == [1]
    assert set(outcome.readouts) == set(task.states)
    assert list(outcome.readouts[task.states[0]]) == ["0", "1"]
    study = optuna.create_study(study_name=name)
    study.set_user_attr("states", list(task.states))
    study.set_user_attr("kind", task.kind)
    store(study, outcome, params, distributions)
    recording = Recording.from_study(study)
    assert recording.states == task.states
    assert recording.trials[0].values == outcome.losses
    assert recording.trials[0].params == params
    assert recording.trials[0].seconds == pytest.approx(outcome.seconds["training"], abs=1e-3)


def test_training_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        _training.TASKS, "lorenz96", dataclasses.replace(TASKS["lorenz96"], epochs=2)
    )
    (params, _), *_ = _training.configurations("lorenz96", 1, None)
    first, second = (_training.train("lorenz96", 0, params, None) for _ in range(2))
    assert (first.losses, first.readouts) == (second.losses, second.readouts)


def test_spaces_have_a_category_and_something_that_does_not_matter() -> None:
    for name in RECORDABLE:
        (_, distributions), *_ = _training.configurations(name, 1, None)
        kinds = {type(d).__name__ for d in distributions.values()}
        assert "CategoricalDistribution" in kinds
        assert "weight_decay" in distributions


def test_the_wide_tasks_share_one_space_of_14_hyperparameters(made_data: Path) -> None:
    first, *others = (_training.configurations(name, 20, made_data) for name in WIDE)
    assert all(other == first for other in others)
    assert len({name for params, _ in first for name in params}) == 14
    assert {params["cell"] for params, _ in first if "gate_bias" in params} == {"GRU", "LSTM"}
    assert {params["cell"] for params, _ in first if "gate_bias" not in params} == {"tanh", "relu"}
    assert {TASKS[name].trials for name in WIDE} == {90}


@pytest.mark.parametrize("cell", _wide.CELLS)
def test_wide_layers_start_as_suggested(cell: str) -> None:
    layer = _wide.make_layer(cell, 3, 5, layers=2)
    inputs = [layer.get_parameter(f"weight_ih_l{i}").clone() for i in range(2)]
    biases = [layer.get_parameter(f"bias_hh_l{i}").clone() for i in range(2)]
    gate_bias = 3.0 if cell in ("GRU", "LSTM") else None
    _wide.initialise_(layer, "identity", gain=0.5, input_scale=2.0, gate_bias=gate_bias)
    for i in range(2):
        recurrent = layer.get_parameter(f"weight_hh_l{i}")
        assert torch.equal(recurrent, 0.5 * torch.eye(5).repeat(len(recurrent) // 5, 1))
        assert torch.equal(layer.get_parameter(f"weight_ih_l{i}"), 2.0 * inputs[i])
        added = layer.get_parameter(f"bias_hh_l{i}") - biases[i]
        expected = torch.zeros_like(added)
        if gate_bias is not None:
            expected[5:10] = gate_bias
        assert torch.allclose(added, expected)


@pytest.mark.parametrize("scheme", _wide.INITIALISATIONS)
def test_wide_schemes_neither_shrink_nor_stretch_at_a_gain_of_one(scheme: str) -> None:
    torch.manual_seed(0)
    layer = _wide.make_layer("tanh", 3, 200, layers=1)
    _wide.initialise_(layer, scheme, gain=1.0, input_scale=1.0, gate_bias=None)
    # Root mean square over directions: the norm of the matrix over that of the identity.
    stretch = layer.get_parameter("weight_hh_l0").detach().norm() / 200**0.5
    # PyTorch's own scheme has a standard deviation of 1 / sqrt(3 n).
    assert stretch == pytest.approx(3**-0.5 if scheme == "uniform" else 1.0, rel=0.02)


def test_what_diverges_has_no_exponents() -> None:
    layer = nn.RNN(1, 4, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").copy_(1e6 * torch.eye(4))
        layer.get_parameter("bias_hh_l0").fill_(1.0)
    assert _training.measure(layer, torch.rand(2, 30, 1), "full") is None


@pytest.mark.slow
def test_the_tables_are_made_and_resumed(tmp_path: Path) -> None:
    args = ["copying", "motion", "--orders", "3", "--others", "2", "--kinds"]
    args += ["--jobs", "2", "--output", str(tmp_path)]
    done = CliRunner().invoke(judge, args)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "tables.md").read_text()
    for heading in (
        "spent and found",
        "winner is found",
        "that pruned",
        "each kind of evidence",
        "decision costs",
    ):
        assert heading in text
    assert text.count("MedianPruner") >= 2
    assert text.count("| freeze_thaw") >= 4
    assert (tmp_path / "replay.html").stat().st_size > 10_000
    replays = (tmp_path / "replays.jsonl").read_text()
    # The page of the documentation is filled from the same replays, and nothing else of it moves.
    page, source = tmp_path / "prediction.md", Path("docs/prediction.md").read_text()
    page.write_text(source)
    assert CliRunner().invoke(judge, [*args, "--write", str(page)]).exit_code == 0
    assert (tmp_path / "replays.jsonl").read_text() == replays
    filled, text = page.read_text(), (tmp_path / "tables.md").read_text()
    names = re.findall(f"{MARK}: (\\w+): begin", source)
    assert {"spent", "found", "intervals", "exponents", "thawing", "chosen"} <= set(names)
    for name in names:
        if name == "constants":
            continue
        block = read_block(filled, f"{MARK}: {name}")
        assert block.strip() in text
        assert block != read_block(source, f"python -m studies.pruning: {name}")
    outside = [re.sub(r"begin -->.*?<!-- end", "", t, flags=re.DOTALL) for t in (source, filled)]
    assert outside[0] == outside[1]


def test_the_readme_says_in_short_what_the_page_says() -> None:
    page, readme = (Path(name).read_text() for name in ("docs/prediction.md", "README.md"))
    short = read_block(readme, f"{MARK}: short")
    assert short.strip() == short_table(read_block(page, f"{MARK}: spent")).strip()


def test_a_page_without_any_place_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    args = ["motion", "--orders", "1", "--others", "1", "--jobs", "1", "--output", str(tmp_path)]
    done = CliRunner().invoke(judge, [*args, "--constants", "--write", str(page)])
    assert "has no place for any of constants" in str(done.exception)
    assert page.read_text() == "nothing"


def test_a_page_without_the_place_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{begin('one')}\nold\n{END}\nafter {begin('two')}\n")
    for name in ("two", "three"):
        with pytest.raises(ValueError, match=f"no place for '{name}'"):
            write_block(page, name, "new")
    write_block(page, "one", "new")
    assert page.read_text() == f"{begin('one')}\n\nnew\n\n{END}\nafter {begin('two')}\n"
