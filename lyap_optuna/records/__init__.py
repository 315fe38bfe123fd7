"""What is stored with a trial, and the only code that touches storage."""

from lyap_optuna.records._artifacts import publish_spectra, write_study_spectra
from lyap_optuna.records._attempts import number_in, repeat
from lyap_optuna.records._copies import copy_study, is_incomplete
from lyap_optuna.records._decisions import (
    Decision,
    chances_apart,
    interval,
    read_decisions,
    write_decision,
)
from lyap_optuna.records._errors import NoDatabaseError, SpectraError
from lyap_optuna.records._journal import JournalError, open_journal
from lyap_optuna.records._json import FLOOR
from lyap_optuna.records._order import keeps_order, report_order, watch_order
from lyap_optuna.records._prunings import counting_of, pruned_at, write_counting, write_pruned
from lyap_optuna.records._readouts import (
    ReadoutRecord,
    baseline_step,
    begins_training,
    has_readout,
    is_own,
    is_untouched,
    prevailing_state,
    read_readouts,
    stored_trial,
    write_failure,
    write_readouts,
)
from lyap_optuna.records._sinks import ArtifactSink, DatabaseSink, SpectrumSink
from lyap_optuna.records._spectra import SpectrumRecord, load_spectra, upgrade_spectra
from lyap_optuna.records._stretches import Stretch, read_stretches, write_stretches

__all__ = [
    "ArtifactSink",
    "DatabaseSink",
    "Decision",
    "chances_apart",
    "FLOOR",
    "JournalError",
    "NoDatabaseError",
    "ReadoutRecord",
    "SpectraError",
    "SpectrumRecord",
    "SpectrumSink",
    "Stretch",
    "baseline_step",
    "begins_training",
    "copy_study",
    "counting_of",
    "has_readout",
    "interval",
    "is_incomplete",
    "is_own",
    "is_untouched",
    "keeps_order",
    "load_spectra",
    "number_in",
    "open_journal",
    "prevailing_state",
    "pruned_at",
    "publish_spectra",
    "read_decisions",
    "read_readouts",
    "read_stretches",
    "repeat",
    "report_order",
    "stored_trial",
    "upgrade_spectra",
    "watch_order",
    "write_counting",
    "write_decision",
    "write_failure",
    "write_pruned",
    "write_readouts",
    "write_stretches",
    "write_study_spectra",
]
