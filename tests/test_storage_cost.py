"""Storing costs little, counted by the program whose table the documentation shows."""

from studies import storage_cost


def test_what_is_stored_costs_little(database_url):
    costs = storage_cost.measure(database_url, trials=2, units=8)
    n = 2 * storage_cost.STEPS
    assert {len(cost.milliseconds) for cost in costs.values()} == {n}
    assert set(costs["trial.report"].writes) == {1}
    assert max(costs["readout"].writes) <= 4
    assert max(costs["readout"].transactions) <= 6
    assert max(costs["decision"].writes) <= 2
    spectrum = costs["spectrum"]
    assert spectrum.transactions == [1] * n
    assert max(spectrum.statements) == (3 if database_url.startswith("sqlite") else 2)
    # No detour through the trial's attributes.
    assert max(spectrum.writes) == max(spectrum.reads) == 0


def test_the_program_prints_a_table(capsys):
    storage_cost.main(["--trials", "1", "--units", "8"])
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line]
    stored = ["trial.report", "readout", "decision", "spectrum"]
    assert [line[0].removeprefix("| ") for line in lines[2:]] == stored
    assert "SQLite" in lines[0][3]
    assert lines[-1][3].startswith("3, 1, ")
