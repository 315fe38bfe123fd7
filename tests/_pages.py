"""Code blocks of pages, and what it takes to run each kind."""

import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import click

from lyap_optuna._version import __version__
from lyap_optuna.campaign import load_config
from lyap_optuna.cli import main
from studies.pages import FENCE, Block, block_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMAND = [sys.executable, "-c", "from lyap_optuna.cli import main; main()"]
SHOWN = ("text", "sql")  # what commands print; queries, which test_databases_doc.py runs
DIRECTIVE = "{"


def blocks(page: str | Path) -> list[Block]:
    text = (DOCS / page).read_text()
    found = [block_of(fence) for fence in FENCE.finditer(text)]
    return [block for block in found if not block.language.startswith(DIRECTIVE)]


def commands(block: Block) -> list[list[str]]:
    return [shlex.split(line) for line in block.code.replace("\\\n", " ").splitlines()]


def run_command(words: list[str], folder: Path) -> str:
    """Run one command as a reader would, in ``folder``; return what it printed."""
    if words[:2] == ["pip", "install"]:
        return check_command(words)
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
    elif words[0] == "lyap-optuna":
        if words[1] == "dashboard":
            return _serve([*COMMAND, *words[1:], "--port", "0"], folder)
        words = [*COMMAND, *words[1:]]
    else:
        raise AssertionError(f"no test knows how to run {words}")
    done = subprocess.run(
        words, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_command(words: list[str]) -> str:
    """Check a command that cannot run here: that its program and options are there."""
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        source, _, extras = words[-1].rstrip("]").partition("[")
        wheel = f"dist/lyap_optuna-{__version__}-py3-none-any.whl"
        assert source in ("lyap-optuna", ".", "torch", "build", wheel), words
        named = {extra for extra in extras.split(",") if extra}
        assert named <= set(project["optional-dependencies"]), words
    elif words[0] == "lyap-optuna":
        command: click.Command = main
        rest = words[1:]
        while isinstance(command, click.Group):
            found = command.get_command(click.Context(command), rest[0])
            assert found is not None, words
            command, rest = found, rest[1:]
        for option in (word for word in rest if word.startswith("-")):
            assert any(option in parameter.opts for parameter in command.params), words
    elif words[:2] == ["python", "-m"]:
        shown = "--wheel" if words[2] == "build" else _help(words[2])
        assert all(word in shown for word in words[3:] if word.startswith("--")), words
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, words
    else:
        raise AssertionError(f"no test knows how to check {words}")
    return ""


@functools.cache
def _help(module: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def check_campaign(block: Block, folder: Path) -> None:
    path = folder / (block.file or "campaign.yaml")
    whole = re.search(r"^study:", block.code, re.MULTILINE)
    minimal = "" if whole else "study: s\nobjective: train:objective\ntrials: 60\n"
    path.write_text(minimal + block.code)
    load_config(path)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def _serve(words: list[str], folder: Path) -> str:
    """Start a server, fetch a page from the address that it prints, and press Ctrl-C."""
    process = subprocess.Popen(
        words, cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = next(line for line in process.stdout if "http://" in line)
        address = re.search(r"http://\S+", said)
        assert address is not None
        with urllib.request.urlopen(address[0], timeout=60) as answer:
            assert answer.status == 200
            page: str = answer.read().decode()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    return page
