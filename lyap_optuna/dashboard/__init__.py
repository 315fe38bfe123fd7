"""What optuna-dashboard shows of a study: figures, notes in words, and its spectra as a file.

The dashboard itself shows ``lyapunov:max``, ``lyapunov:mean`` and ``lyapunov:predicted_value`` with
each trial, because they are trial attributes. :func:`publish` adds the rest to the study;
``lyap-optuna dashboard`` does so for every study of a storage, again and again while trials run.
"""

from lyap_optuna.dashboard._publish import SPECTRA_FILE, publish
from lyap_optuna.dashboard._publisher import Publisher
from lyap_optuna.dashboard._server import make_dashboard, wsgi

__all__ = ["SPECTRA_FILE", "Publisher", "make_dashboard", "publish", "wsgi"]
