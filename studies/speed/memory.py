"""Print the peak memory of a whole spectrum, in MiB above model and inputs."""

import resource
import sys

import torch
from torch import nn

import lyap_optuna as lyap


def peak_memory(units: int) -> float:
    """Return what ten sequences of 100 steps through an LSTM need; once per process."""
    torch.manual_seed(0)
    small, layer = (nn.LSTM(82, n, bias=False, batch_first=True) for n in (64, units))
    x = torch.randn(10, 100, 82)
    lyap.lyapunov_spectrum(small, x[:2, :10])  # libraries and thread pools come in
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lyap.lyapunov_spectrum(layer, x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    print(peak_memory(int(sys.argv[1])))
