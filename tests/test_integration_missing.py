"""What somebody sees who has not installed a framework."""

import re
import subprocess
import sys

import pytest

import lyap_optuna as lyap
from lyap_optuna._extras import how_to_install


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("LyapunovPruningCallback", "lightning", "lightning"),
        ("SkorchLyapunovCallback", "skorch", "skorch"),
        ("IgniteLyapunovHandler", "ignite", "ignite"),
        ("LyapunovEvalCallback", "sb3", "sb3"),
        ("FastaiLyapunovCallback", "fastai", "fastai"),
        ("LyapunovTrainerCallback", "transformers", "transformers"),
    ],
)
def test_a_missing_framework_says_what_to_install(name, package, extra):
    script = (
        f"import sys; sys.modules[{package!r}] = sys.modules['pytorch_lightning'] = None\n"
        "sys.modules['sb3_contrib'] = None\n"
        "import lyap_optuna.integration\n"
        f"from lyap_optuna.integration import {name}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(rf"ImportError: {name} needs .*{package}", last), last
    assert last.endswith(how_to_install(extra))


def test_the_callbacks_are_listed_and_nothing_else_is_there():
    assert dir(lyap.integration) == sorted(lyap.integration.__all__)
    with pytest.raises(AttributeError, match="no attribute 'KerasLyapunovCallback'"):
        _ = lyap.integration.KerasLyapunovCallback
