"""What the callbacks of all frameworks share."""

import pytest
import torch
from _frameworks import Last, ask, make_data
from torch import nn

import lyap_optuna as lyap
from lyap_optuna.integration._reporter import TrialReporter, first_inputs

X, Y = make_data()


def test_a_batch_whose_inputs_cannot_be_told_is_a_warning_and_the_trial_goes_on():
    trial = ask()
    reporter = TrialReporter(trial, None, {})
    with pytest.warns(lyap.LyapunovWarning, match="is a dict, .* pass inputs="):
        reporter.begin(Last(), {"x": X, "y": Y}, untrained=True)
    assert not reporter.report(0.5, 0, last=True)
    stored = trial.study.trials[0]
    assert stored.intermediate_values == {0: 0.5}
    assert "cannot be told apart" in stored.user_attrs["lyapunov:failures"]["-1"]
    with pytest.raises(ValueError, match="cannot be told apart"):
        TrialReporter(trial, None, {"strict": True}).begin(Last(), {"x": X}, untrained=True)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_first_inputs_of_several_layers(batch_first):
    layers = nn.ModuleList([nn.GRU(2, 3, batch_first=True), nn.LSTM(3, 3, batch_first=batch_first)])
    taken = first_inputs((X, Y), layers)
    assert len(taken) == (10 if batch_first else len(X))
    assert len(first_inputs((X, Y), layers, layers[0])) == 10
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 2)])
    assert first_inputs((packed, Y), layers) is packed
    assert first_inputs(packed, layers) is packed
