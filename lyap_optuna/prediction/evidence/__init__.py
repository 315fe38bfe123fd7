"""Kinds of evidence, one file each. :mod:`.base` states the contract; the registry is here."""

from collections.abc import Iterable

from lyap_optuna.prediction.evidence.base import Evidence, Feature, TrialView
from lyap_optuna.prediction.evidence.displacement import DisplacementEvidence
from lyap_optuna.prediction.evidence.exponents import ExponentEvidence
from lyap_optuna.prediction.evidence.hyperparameters import HyperparameterEvidence
from lyap_optuna.prediction.evidence.loss import LossEvidence

EVIDENCE: dict[str, Evidence] = {
    kind.name: kind
    for kind in (
        LossEvidence(),
        ExponentEvidence(),
        DisplacementEvidence(),
        HyperparameterEvidence(),
    )
}
"""Every kind of evidence by its name, in the order in which tables list them."""


def check_evidence(evidence: Iterable[str] | str | None) -> tuple[str, ...]:
    """Return the chosen kinds in the registry's order; all of them for None.

    Raises:
        ValueError: A name is unknown, or none is given.
    """
    if evidence is None:
        return tuple(EVIDENCE)
    names = [evidence] if isinstance(evidence, str) else list(evidence)
    for name in names:
        if name not in EVIDENCE:
            raise ValueError(
                f"Unknown kind of evidence {name!r}; the kinds are {', '.join(EVIDENCE)}."
            )
    if not names:
        raise ValueError(
            f"At least one kind of evidence is needed, but got {evidence=}; "
            f"the kinds are {', '.join(EVIDENCE)}."
        )
    return tuple(name for name in EVIDENCE if name in names)


def in_words(kinds: Iterable[str], sign: int = 1) -> str:
    """Return kinds of evidence as a sentence names them.

    Args:
        kinds: Names of kinds, registered or not.
        sign: 1 where the study minimises; -1 where it maximises: what is reported is no loss then.

    Example:
        >>> from lyap_optuna.prediction.evidence import in_words
        >>> in_words(["loss", "exponents", "hyperparameters"], sign=-1)
        'score so far, exponents and hyperparameters'
    """
    so_far = "loss so far" if sign > 0 else "score so far"
    names = [so_far if kind == LossEvidence.name else kind for kind in kinds]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


__all__ = ["EVIDENCE", "Evidence", "Feature", "TrialView", "check_evidence", "in_words"]
