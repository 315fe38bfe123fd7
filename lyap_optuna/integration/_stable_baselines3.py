"""A callback for recurrent policies of Stable-Baselines3 (``sb3_contrib.RecurrentPPO``)."""

import itertools
from typing import Any

import numpy as np
import torch
from optuna.study import Study
from optuna.trial import BaseTrial
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import EvalCallback

from lyap_optuna.integration._reporter import TrialReporter

N_SEQUENCES, N_STEPS = 10, 100
"""What is measured of a rollout at most: sequences, and steps of each."""


class LyapunovEvalCallback(EvalCallback):  # type: ignore[misc]  # not installed where types are
    """Evaluation callback that measures exponents, reports to the trial, and prunes it.

    Stands where the ``TrialEvalCallback`` of rl-baselines3-zoo would: each evaluation's mean reward
    is reported with a readout, at the number of the evaluation, from 1; where the pruner says so
    training stops, ``is_pruned`` is true and :meth:`check_pruned` raises. When training is over
    nothing is pruned.

    Measured is the policy on the first rollout: the LSTMs of actor and critic, in at most ten
    sequences of 100 steps, each within an episode and from the state that it began with. The
    baseline is taken when the rollout ends, before the first update, or at an evaluation before.

    Args:
        eval_env: The environment to evaluate in.
        trial: The running trial, or a study whose running trial is meant.
        step: ``"validation"``, the number of the evaluation, or ``"global_step"``, the time steps
            that were taken.
        n_eval_episodes: As for ``EvalCallback``.
        eval_freq: As for ``EvalCallback``.
        deterministic: As for ``EvalCallback``.
        best_model_save_path: As for ``EvalCallback``.
        log_path: As for ``EvalCallback``.
        verbose: As for ``EvalCallback``.
        **probe_options: Passed on to :class:`~lyap_optuna.LyapunovProbe`: ``layer``,
            ``last_step``, ``full_spectrum``, ``state``, ``strict`` and the like.

    Raises:
        ValueError: While training: an option is wrong, or the policy is not recurrent.

    Example:
        >>> import gymnasium
        >>> import optuna
        >>> import lyap_optuna as lyap
        >>> from sb3_contrib import RecurrentPPO
        >>> from lyap_optuna.integration import LyapunovEvalCallback
        >>> def objective(trial):
        ...     rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        ...     model = RecurrentPPO(
        ...         "MlpLstmPolicy", "Pendulum-v1", n_steps=64, learning_rate=rate, device="cpu",
        ...         policy_kwargs={"lstm_hidden_size": 8},
        ...     )
        ...     evaluations = gymnasium.make("Pendulum-v1")
        ...     callback = LyapunovEvalCallback(
        ...         evaluations, trial, n_eval_episodes=1, eval_freq=64, verbose=0
        ...     )
        ...     model.learn(128, callback)
        ...     callback.check_pruned()
        ...     return callback.last_mean_reward
        >>> study = optuna.create_study(direction="maximize", pruner=lyap.LyapunovPruner())
        >>> study.optimize(objective, n_trials=1)
        >>> sorted(study.trials[0].user_attrs["lyapunov:readouts"])
        ['0', '1', '2']
    """

    def __init__(
        self,
        eval_env: Any,
        trial: BaseTrial | Study,
        *,
        step: str = "validation",
        n_eval_episodes: int = 5,
        eval_freq: int = 10000,
        deterministic: bool = True,
        best_model_save_path: str | None = None,
        log_path: str | None = None,
        verbose: int = 0,
        **probe_options: Any,
    ) -> None:
        super().__init__(
            eval_env,
            n_eval_episodes=n_eval_episodes,
            eval_freq=eval_freq,
            deterministic=deterministic,
            best_model_save_path=best_model_save_path,
            log_path=log_path,
            verbose=verbose,
        )
        self._reporter = TrialReporter(trial, self._inputs, probe_options, counting=step, first=1)
        self.is_pruned = False

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._reporter.start()
        if not hasattr(self.model, "_last_lstm_states"):
            raise ValueError(
                "LyapunovEvalCallback measures recurrent policies, but "
                f"{type(self.model).__name__} has none: use sb3_contrib.RecurrentPPO."
            )

    def _on_rollout_end(self) -> None:
        self._begin()
        super()._on_rollout_end()

    def _begin(self) -> None:
        policy, buffer = self.model.policy, self.model.rollout_buffer
        if not self._reporter.measures(policy) and buffer.pos:
            self._reporter.begin(policy, buffer, untrained=self.model._n_updates == 0)

    def _inputs(self, buffer: Any) -> Any:
        """Return what the policy's forward takes: sequences of a rollout, one after another.

        None holds the start of an episode, so that the policy calls its LSTMs once and not for
        each step.
        """
        began = buffer.episode_starts[: buffer.pos].astype(bool)
        pieces, steps = _within_episodes(began)

        def rows(values: Any) -> Any:
            if isinstance(values, dict):
                return {name: rows(part) for name, part in values.items()}
            return self._tensor(np.concatenate([values[t : t + steps, env] for t, env in pieces]))

        def states(name: str) -> tuple[Any, ...]:
            held = (getattr(buffer, f"{kind}_states_{name}") for kind in ("hidden", "cell"))
            return tuple(
                self._tensor(
                    np.stack([part[t][:, env] * (not began[t, env]) for t, env in pieces], axis=1)
                )
                for part in held
            )

        goes_on = torch.zeros(len(pieces) * steps, device=self.model.device)
        return rows(buffer.observations), RNNStates(states("pi"), states("vf")), goes_on

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.as_tensor(array, device=self.model.device)

    def _on_step(self) -> bool:
        goes_on = bool(super()._on_step())
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq:
            return goes_on
        self._begin()
        step = self._reporter.step(epoch=0, update=self.num_timesteps, once=False)
        last = self.num_timesteps >= self.model._total_timesteps
        self.is_pruned = self._reporter.report(float(self.last_mean_reward), step, last=last)
        return goes_on and not self.is_pruned

    def check_pruned(self) -> None:
        """Raise :class:`optuna.TrialPruned` where training stopped because the pruner said so.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
        """
        self._reporter.check_pruned()


def _within_episodes(began: np.ndarray) -> tuple[list[tuple[int, int]], int]:
    """Return where equally long sequences without a start of an episode begin, and their length.

    They are as long as gives the most steps in all.

    Args:
        began: Whether an episode began, ``(steps, environments)``.
    """
    spans = []
    for env in range(began.shape[1]):
        cuts = [0, *(np.flatnonzero(began[1:, env]) + 1), len(began)]
        spans += [(int(t), env, int(end - t)) for t, end in itertools.pairwise(cuts)]

    def steps_in_all(steps: int) -> int:
        return steps * min(N_SEQUENCES, sum(length // steps for _, _, length in spans))

    longest = min(N_STEPS, max(length for _, _, length in spans))
    steps = max(range(longest, 0, -1), key=steps_in_all)
    pieces = [(t + i * steps, env) for t, env, length in spans for i in range(length // steps)]
    return pieces[:N_SEQUENCES], steps
