"""What cannot be measured, as against what was asked wrongly."""


class NotMeasurableError(ValueError):
    """This model, on these inputs, has no exponents that could be measured; the message says why.

    A wrong option is a plain :class:`ValueError`.
    """


class OptionError(ValueError):
    """An option is wrong, though that shows only while the model runs."""


class NoStepsError(NotMeasurableError):
    """A layer is not used as a recurrence: its state is never handed on for two steps."""


class RowsInteractError(NotMeasurableError):
    """The sequences of a batch are one system."""


class NonFiniteParametersError(NotMeasurableError):
    """The network has NaN or infinite weights, or diverges: it has no exponents."""
