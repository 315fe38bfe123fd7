"""The load test behind the numbers in docs/campaigns.md still runs, and ends by itself."""

import pytest
from _servers import server_url

from studies import load_test


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--decide"], ["--grpc"]])
def test_the_load_test_prints_a_row_per_number_of_workers(capsys, options):
    server = server_url("postgresql").set(database=None).render_as_string(hide_password=False)
    load_test.main([server, "--workers", "1", "3", "--seconds", "2", "--interval", "0.2", *options])
    printed = capsys.readouterr().out.splitlines()
    cells = [line.split("|") for line in printed if line.startswith("|")]
    rows = [row for row in cells if row[1].strip().isdigit()]
    assert [int(row[1]) for row in rows] == [1, 3]
    assert all(float(row[3]) > 0 for row in rows)
