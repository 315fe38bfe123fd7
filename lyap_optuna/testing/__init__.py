"""What a layer, a kind of evidence, a figure or a storage has to do, as checks for your tests.

Each check is a function that states one fact, and raises a :class:`ValueError` that says what is
wrong. A test of your own class is three lines::

    @pytest.mark.parametrize("check", lyap_optuna.testing.STORAGE_CHECKS)
    def test_my_storage(check):
        check(lambda: MyStorage(url))

====================== =========================================================================
``DYNAMICS_CHECKS``    ``check(dynamics, inputs)``, with the arguments of
                       :func:`~lyap_optuna.dynamics.check_dynamics`, which makes all of them
``EVIDENCE_CHECKS``    ``check(kind)``, of an :class:`~lyap_optuna.prediction.evidence.Evidence`
``FIGURE_CHECKS``      ``check(spec)``, of a ``FigureSpec``
``STORAGE_CHECKS``     ``check(opened)``: ``opened()`` returns the storage, called again the same
                       one as another process would open it
====================== =========================================================================

Example:
    >>> from optuna.storages import InMemoryStorage
    >>> from lyap_optuna.testing import STORAGE_CHECKS
    >>> storage = InMemoryStorage()
    >>> STORAGE_CHECKS[0](lambda: storage)
    >>> print(STORAGE_CHECKS[0].__doc__)
    All that Optuna keeps of trials and studies comes back, written at once or in pieces.
"""

from lyap_optuna.dynamics._battery import DYNAMICS_CHECKS
from lyap_optuna.testing._evidence import EVIDENCE_CHECKS
from lyap_optuna.testing._figures import FIGURE_CHECKS
from lyap_optuna.testing._storages import STORAGE_CHECKS

__all__ = ["DYNAMICS_CHECKS", "EVIDENCE_CHECKS", "FIGURE_CHECKS", "STORAGE_CHECKS"]
