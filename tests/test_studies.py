"""The programs under studies/ run, at a size of seconds."""

import pytest
from click.testing import CliRunner

from studies import start
from studies.speed import __main__ as speed


@pytest.mark.slow
def test_the_speed_benchmark_prints_its_tables(tmp_path):
    options = ["--sizes", "16,24", "--repeats", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(speed.main, options, catch_exceptions=False)
    assert result.exit_code == 0
    for name in (*speed.ARCHITECTURES, "Target and measured", "float64 QR", "MiB"):
        assert name in result.output
    assert (tmp_path / "speed.html").stat().st_size > 1000


@pytest.mark.slow
def test_the_study_of_the_start_prints_its_table(monkeypatch):
    monkeypatch.setattr(start, "LONG", 60)
    options = ["--units", "8", "--starts", "2"]
    result = CliRunner().invoke(start.main, options, catch_exceptions=False)
    assert result.exit_code == 0
    for name in ("tanh, identity", "LSTM, chrono", "root mean square"):
        assert name in result.output


def test_slope_is_the_exponent_of_a_power_law():
    rows = [
        speed.Row(speed.Case("LSTM full", None, "full", n), 1, 3e-6 * n**2.1, 1, 1, "lu", 0, 0)
        for n in (64, 256, 1024)
    ]
    assert speed.slope(rows, lambda r: r.readout) == pytest.approx(2.1)
