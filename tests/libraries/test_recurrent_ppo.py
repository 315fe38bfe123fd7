"""Recurrent policies, tuned as rl-baselines3-zoo does: actor and critic, episodes kept apart."""

import doctest
import itertools

import numpy as np
import optuna
import pytest
import torch
from _trained import Witness
from _truth import library

from lyap_optuna.records import read_readouts

pytestmark = pytest.mark.filterwarnings("ignore")

contrib = library("sb3_contrib")
gymnasium = library("gymnasium")

from lyap_optuna.integration import LyapunovEvalCallback  # noqa: E402
from lyap_optuna.integration._stable_baselines3 import (  # noqa: E402
    N_SEQUENCES,
    _within_episodes,
)


def learn(trial, name="Pendulum-v1", steps=256, n_steps=64, eval_freq=64, envs=1, **options):
    environment = library("stable_baselines3.common.env_util").make_vec_env(name, envs, seed=0)
    model = contrib.RecurrentPPO(
        "MlpLstmPolicy",
        environment,
        n_steps=n_steps,
        batch_size=32,
        n_epochs=2,
        seed=0,
        device="cpu",
        learning_rate=3e-3,
        policy_kwargs={"lstm_hidden_size": 6},
    )
    callback = LyapunovEvalCallback(
        gymnasium.make(name), trial, n_eval_episodes=1, eval_freq=eval_freq, **options
    )
    return model, callback, steps


def test_both_lstms_are_measured_on_the_rollout_as_a_float64_product_says():
    trial = optuna.create_study(direction="maximize").ask()
    model, callback, steps = learn(trial, envs=3, eval_freq=128, steps=512)
    kept = {}

    before = callback._on_rollout_end

    def rollout_ended():
        if not kept:
            buffer = model.rollout_buffer
            kept["x"] = torch.as_tensor(buffer.observations.swapaxes(0, 1).copy())
            kept["witness"] = Witness()
            kept["witness"].watch(model.policy)
        before()

    callback._on_rollout_end = rollout_ended
    model.learn(steps, callback)
    witness = kept["witness"]
    for name, layer in witness.layers.items():  # episodes of 200 steps: none begins but the first
        witness.calls[name] = (kept["x"].transpose(0, 1),), {}
        assert not layer.batch_first
    stored = trial.user_attrs["lyapunov:readouts"]
    witness.agrees(stored["0"])


def test_episodes_that_begin_within_a_rollout_are_kept_apart():
    trial = optuna.create_study(direction="maximize").ask()
    model, callback, steps = learn(trial, "CartPole-v1", envs=2)
    model.learn(steps, callback)
    stored = read_readouts(trial.study.trials[0])
    assert list(stored) == [0, 1, 2]
    assert all(np.isfinite(r.max) and r.mean is not None for r in stored.values())
    assert set(stored[0].layers) == {"lstm_actor", "lstm_critic"}
    # An LSTM that is about to be trained forgets: no reset is taken for a collapse.
    assert -1.0 < stored[0].max < 0.0


@pytest.mark.parametrize("seed", range(5))
def test_sequences_lie_within_episodes_and_hold_the_most_steps(seed):
    began = np.random.default_rng(seed).random((50, 3)) < 0.1
    pieces, steps = _within_episodes(began)
    taken = set()
    for t, env in pieces:
        assert t + steps <= len(began)
        assert not began[t + 1 : t + steps, env].any()
        taken |= {(t + i, env) for i in range(steps)}
    assert len(taken) == steps * len(pieces)
    assert len(pieces) <= N_SEQUENCES
    for other in range(1, 51):  # no other length of pieces would hold more
        ends = [[0, *(np.flatnonzero(column[1:]) + 1), 50] for column in began.T]
        held = sum(int(b - a) // other for cuts in ends for a, b in itertools.pairwise(cuts))
        assert other * min(held, N_SEQUENCES) <= len(taken)


def test_evaluations_before_the_first_update_have_the_baseline_before_them():
    trial = optuna.create_study(direction="maximize").ask()
    model, callback, steps = learn(trial, eval_freq=32, steps=64)
    model.learn(steps, callback)
    assert list(trial.study.trials[0].intermediate_values) == [1, 2]
    assert list(read_readouts(trial.study.trials[0])) == [0, 1, 2]


def test_time_steps_are_counted_where_that_is_asked_for():
    trial = optuna.create_study(direction="maximize").ask()
    model, callback, steps = learn(trial, steps=128, step="global_step")
    model.learn(steps, callback)
    assert list(trial.study.trials[0].intermediate_values) == [64, 128]
    assert list(read_readouts(trial.study.trials[0])) == [63, 64, 128]


def test_training_is_bit_identical_to_training_without():
    weights = []
    for full in (None, False, True):
        trial = optuna.create_study(direction="maximize").ask()
        model, callback, steps = learn(trial, steps=128, full_spectrum=bool(full))
        if full is None:
            callback._begin = lambda: None
        model.learn(steps, callback)
        weights.append([p.detach().clone() for p in model.policy.parameters()])
    for others in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True))


def test_a_policy_without_memory_is_refused():
    ppo = library("stable_baselines3").PPO("MlpPolicy", "Pendulum-v1", n_steps=64, device="cpu")
    trial = optuna.create_study(direction="maximize").ask()
    with pytest.raises(ValueError, match="PPO has none: use sb3_contrib"):
        ppo.learn(64, LyapunovEvalCallback(gymnasium.make("Pendulum-v1"), trial))


def test_the_example():
    from lyap_optuna.integration import _stable_baselines3

    assert doctest.testmod(_stable_baselines3).failed == 0
