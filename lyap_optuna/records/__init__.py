"""What is stored with a trial, and the only code that touches storage."""

from lyap_optuna.records._decisions import Decision, read_decisions, write_decision
from lyap_optuna.records._json import FLOOR
from lyap_optuna.records._readouts import (
    ReadoutRecord,
    baseline_step,
    begins_training,
    has_readout,
    read_readouts,
    stored_trial,
    write_failure,
    write_readouts,
)

__all__ = [
    "Decision",
    "FLOOR",
    "ReadoutRecord",
    "baseline_step",
    "begins_training",
    "has_readout",
    "read_decisions",
    "read_readouts",
    "stored_trial",
    "write_decision",
    "write_failure",
    "write_readouts",
]
