"""What cannot be measured."""


class NotMeasurableError(ValueError):
    """This model, on these inputs, has no exponents that could be measured; the message says why.

    A wrong option is a plain :class:`ValueError`.
    """


class NonFiniteParametersError(NotMeasurableError):
    """The network has NaN or infinite weights, or diverges: it has no exponents."""
