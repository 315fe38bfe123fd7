"""Why spectra cannot be stored or read."""


class SpectraError(RuntimeError):
    """Why spectra cannot be stored or read; the message holds nothing secret."""


class NoDatabaseError(SpectraError):
    """The study is kept where there are no tables, and no database was named for its spectra."""
