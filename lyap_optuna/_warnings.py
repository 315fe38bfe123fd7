"""The one warning category of this package."""


class LyapunovWarning(UserWarning):
    """Something about a Lyapunov readout, record or prediction went wrong; the trial goes on."""
