"""Names of the trial attributes that this package writes. They are the stored contract."""

READOUTS = "lyapunov:readouts"
"""The series: a JSON object from step (as a string) to a readout object."""

MAX = "lyapunov:max"
"""The latest maximum exponent (nats/step), a finite number or absent."""

MEAN = "lyapunov:mean"
"""The latest mean exponent that could be had (nats/step), a finite number or absent."""

PREDICTED_VALUE = "lyapunov:predicted_value"
"""The latest predicted final value, a finite number or absent."""

DECISION = "lyapunov:decision"
"""The latest pruning decision with, under ``earlier``, those it differs from."""

TRIAL = "lyapunov:trial"
"""The number of the trial that measured the readouts."""

REPEATS = "lyapunov:repeats"
"""The number of the trial that ended before its time and whose parameters this one has."""

CONTINUES = "lyapunov:continues"
"""The number of the pruned trial that this one, with its parameters, continues."""

ATTEMPTS = (REPEATS, CONTINUES)
"""Attributes with the number of the trial whose readouts a queued trial inherits."""

FAILURES = "lyapunov:failures"
"""A JSON object from step (as a string) to why no readout was taken there."""

ORDER = "lyapunov:order"
"""The reported steps in the order in which they came, where they did not ascend."""

RESTING = "lyapunov:resting"
"""Whether a RUNNING trial rests: :func:`~lyap_optuna.freeze_thaw` has paused it."""

STRETCHES = "lyapunov:stretches"
"""When a trial that has rested ran, and what was thought of it at each pause."""

PRUNED = "lyapunov:pruned"
"""The number of the trial that a callback gave up, and the step at which it did."""

COUNTING = "lyapunov:steps"
"""What the steps of a trial count, where it is not epochs: ``"global_step"``, ``"validation"``."""
