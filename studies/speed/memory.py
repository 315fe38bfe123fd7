"""Print the peak memory of a whole spectrum, in MiB above model and inputs."""

import re
import sys
from pathlib import Path

import torch
from torch import nn

import lyap_optuna as lyap


def peak_memory(units: int) -> float:
    """Return what ten sequences of 100 steps through an LSTM need; once per process."""
    torch.manual_seed(0)
    small, layer = (nn.LSTM(82, n, bias=False, batch_first=True) for n in (64, units))
    x = torch.randn(10, 100, 82)
    lyap.lyapunov_spectrum(small, x[:2, :10])  # libraries and thread pools come in
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    lyap.lyapunov_spectrum(layer, x)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {name}: peak memory is measured on Linux only.")
    return int(found[1])


if __name__ == "__main__":
    print(peak_memory(int(sys.argv[1])))
