"""Pruning decisions, recorded while the trial runs so that anyone can ask later why it died."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from lyap_optuna._numbers import apart
from lyap_optuna._warnings import LyapunovWarning
from lyap_optuna.records import _json, _keys
from lyap_optuna.records._readouts import is_own

MAX_DECISIONS = 32
"""As many as fit into an attribute, with their sentences, of any usual length."""


@dataclass(frozen=True)
class Decision:
    """What a pruner decided about a trial at a step, and on what grounds.

    Args:
        step: The step of the decision; that of the baseline before the first report.
        verdict: ``"pruned"`` or ``"kept"``.
        because: What decided: ``"chance"``; ``"leads"`` (hardly a COMPLETE trial was as good at
            this step); ``"audit"`` (it was to be pruned, and runs on so that prunings can be
            judged); ``"nan"`` (it has reported nothing else); ``"end"`` (nothing is left to save);
            ``"unknown"`` (nothing can be predicted yet); ``"infeasible"`` (no COMPLETE trial is
            feasible); ``"rested"`` (:func:`~lyap_optuna.freeze_thaw` had paused it, and others
            promised more).
        predicted_value: Predicted final value; None where nothing was predicted.
        lower: Lower end of the 80 % prediction interval of the final value; None where no
            COMPLETE trial ended beyond it.
        upper: Its upper end; None likewise.
        threshold: The value that marks the best ``top_fraction`` of COMPLETE trials.
        top_fraction: The fraction of COMPLETE trials that count as the best.
        probability: Chance of ending among them.
        min_probability: The chance below which a trial is pruned at this step.
        evidence: Kinds of evidence that the prediction used.
        shares: By kind, the share of the variance of final values that it explains.
        skill: Out-of-sample rank correlation of prediction and final value.
        n_trials: COMPLETE trials behind it.
        told: The sentence, where an earlier version recorded one.
        copied_from: The trial's number in another study, where it was made there.
    """

    step: int
    verdict: str
    because: str = "chance"
    predicted_value: float | None = None
    lower: float | None = None
    upper: float | None = None
    threshold: float | None = None
    top_fraction: float | None = None
    probability: float | None = None
    min_probability: float | None = None
    evidence: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    skill: float | None = None
    n_trials: int = 0
    told: str = ""
    copied_from: int | None = None

    @property
    def reason(self) -> str:
        """The decision in words."""
        if self.told:
            return self.told
        on = f"{self.n_trials} COMPLETE trial{'' if self.n_trials == 1 else 's'}"
        if self.because == "nan":
            return f"It has reported nothing but NaN up to step {self.step}."
        if self.because == "end":
            return "It has come as far as every COMPLETE trial: nothing is left to save."
        rested = ", and it rested: others promised more than to go on with it"
        if self.probability is None and self.because == "rested":
            return f"Nothing could be predicted, on {on}{rested}."
        if self.probability is None and self.because != "infeasible":
            return f"Nothing can be predicted yet, on {on}."
        within = interval(self.lower, self.upper)
        story = f"Predicted to end at {_number(self.predicted_value)} ({within})"
        weighed = sorted(self.shares.items(), key=lambda item: -item[1])
        if weighed:
            told = ", ".join(f"{kind} {share:.0%}" for kind, share in weighed)
            story += f" from {told} (shares of the variance, on {on})"
        if self.because == "infeasible" or self.probability is None:
            return f"{story}; no COMPLETE trial is feasible, so there are no best to compare with."
        if self.because == "rested":
            best = f"the best ({_number(self.threshold)} or better)"
            chance = f"{self.probability:.2g}"
            return f"{story}; its chance of ending among {best} is {chance}{rested}."
        chance, least = chances_apart(self.probability, self.min_probability or 0.0)
        below = self.probability < (self.min_probability or 0.0)
        story += (
            f"; its chance of ending among the best ({_number(self.threshold)} or better) is "
            f"{chance}, {'' if below else 'not '}below {least}"
        )
        ends = {
            "leads": ", and it is kept because hardly a COMPLETE trial was as good at this step",
            "audit": ", and it runs on all the same, so that prunings can be judged",
        }
        return f"{story}{ends.get(self.because, '')}."

    def to_json(self) -> dict[str, Any]:
        """Return the object that is stored."""
        stored: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if isinstance(value, float):
                value = _json.rounded(value)
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, dict):
                value = {k: round(v, 3) for k, v in value.items()}
            stored[name] = value
        stored["reason"] = self.reason
        del stored["told"], stored["copied_from"]
        return stored

    @classmethod
    def from_json(cls, stored: object) -> "Decision":
        """Validate a stored object.

        Raises:
            ValueError: It is not an object with a step and a verdict.
        """
        if not isinstance(stored, Mapping):
            raise ValueError(f"a decision must be an object, not {stored!r:.80}")
        step, verdict = stored.get("step"), stored.get("verdict")
        if isinstance(step, bool) or not isinstance(step, int):
            raise ValueError(f"step must be an integer, not {step!r:.40}")
        if verdict not in ("pruned", "kept"):
            raise ValueError(f"verdict must be 'pruned' or 'kept', not {verdict!r:.40}")
        evidence = stored.get("evidence")
        n_trials = stored.get("n_trials")
        shares = stored.get("shares")
        checked = {
            str(kind)[:80]: share
            for kind, value in (shares.items() if isinstance(shares, Mapping) else ())
            if (share := _json.finite(value)) is not None
        }
        return cls(
            step=step,
            verdict=verdict,
            because=str(stored.get("because", "chance"))[:20],
            predicted_value=_json.finite(stored.get("predicted_value")),
            lower=_json.finite(stored.get("lower")),
            upper=_json.finite(stored.get("upper")),
            threshold=_json.finite(stored.get("threshold")),
            top_fraction=_json.finite(stored.get("top_fraction")),
            probability=_json.finite(stored.get("probability")),
            min_probability=_json.finite(stored.get("min_probability")),
            evidence=tuple(str(e)[:80] for e in evidence) if isinstance(evidence, list) else (),
            shares=checked,
            skill=_json.finite(stored.get("skill")),
            n_trials=n_trials if isinstance(n_trials, int) else 0,
            told=str(stored.get("reason", ""))[:1000],
        )


def chances_apart(a: float, b: float) -> tuple[str, str]:
    """Write two chances with as many digits as it takes to tell them apart, two at least.

    What is below 0.0001 is not told more closely: no study knows it so well.
    """
    return ("less than 0.0001", f"{b:.2g}") if a < 1e-4 <= b else apart(a, b, least=2, most=6)


def interval(lower: float | None, upper: float | None) -> str:
    """Write an 80 % interval, which may be open at an end."""
    if lower is None and upper is None:
        return "anywhere, as far as can be told"
    if lower is None:
        return f"80 %: {_number(upper)} or less"
    if upper is None:
        return f"80 %: {_number(lower)} or more"
    return f"80 % interval {_number(lower)} to {_number(upper)}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def write_decision(study: Study, trial: FrozenTrial, decision: Decision) -> None:
    """Record a decision with the running trial, with at most two attribute writes.

    Goes through the storage: the copy of the trial that a pruner is given does not see earlier
    writes. Where verdict, ground or evidence changed, the earlier decision is kept (32 in all). A
    write that fails is a :class:`~lyap_optuna.LyapunovWarning`; the trial goes on.
    """
    storage, trial_id = study._storage, trial._trial_id
    try:
        past = storage.get_trial(trial_id).user_attrs.get(_keys.DECISION)
        earlier: list[Any] = []
        if isinstance(past, dict) and past.get("trial") == trial.number:
            past = dict(past)  # in-memory storages hand out the attribute itself
            kept = past.pop("earlier", [])
            earlier = list(kept) if isinstance(kept, list) else []
            now = decision.to_json()
            if any(past.get(name) != now[name] for name in ("verdict", "because", "evidence")):
                earlier.append(past)
        stored = {"trial": trial.number, **decision.to_json()}
        stored["earlier"] = earlier[-(MAX_DECISIONS - 1) :]
        while stored["earlier"] and _json.size(stored) > _json.MAX_BYTES:
            stored["earlier"].pop(0)
        storage.set_trial_user_attr(trial_id, _keys.DECISION, stored)
        predicted = _json.rounded(decision.predicted_value)
        if predicted is not None:
            storage.set_trial_user_attr(trial_id, _keys.PREDICTED_VALUE, predicted)
    except Exception as error:
        warnings.warn(
            f"The decision on trial {trial.number} at step {decision.step} was not recorded: "
            f"{type(error).__name__}.",
            LyapunovWarning,
            stacklevel=3,
        )


def read_decisions(trial: FrozenTrial) -> list[Decision]:
    """Return the recorded decisions of ``trial``, oldest first, the latest last.

    Decisions that a retried trial inherited from the dead attempt, and what does not validate,
    are left out. Those of a trial that was copied from another study say which number it had.
    """
    stored = trial.user_attrs.get(_keys.DECISION)
    if not isinstance(stored, Mapping) or not is_own(trial, stored.get("trial")):
        return []
    number = stored.get("trial")
    copied_from = number if isinstance(number, int) and number != trial.number else None
    earlier = stored.get("earlier")
    decisions: list[Decision] = []
    for item in [*(earlier if isinstance(earlier, list) else []), stored]:
        try:
            decisions.append(replace(Decision.from_json(item), copied_from=copied_from))
        except ValueError as error:
            warnings.warn(
                f"Ignored an invalid decision in {_keys.DECISION!r} of trial {trial.number}: "
                f"{error}.",
                LyapunovWarning,
                stacklevel=2,
            )
    return decisions
