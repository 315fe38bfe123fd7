"""Every Python block of the docs runs, top to bottom."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", ["architectures.md"])
def test_python_blocks_run(page, capsys):
    from lyap_optuna.dynamics._registry import _ARCHITECTURES

    before = dict(_ARCHITECTURES)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.S)
    assert blocks
    names: dict[str, object] = {}
    try:
        for block in blocks:
            exec(compile(block, page, "exec"), names)  # our own documentation
    finally:
        _ARCHITECTURES.clear()
        _ARCHITECTURES.update(before)
    assert capsys.readouterr().out.count("LyapunovReadout(") == 2
