"""The recorded tasks, one file each; the registry is here."""

from studies.recordings.tasks import (
    adding,
    adding_tanh,
    copying,
    delayed_digits,
    language,
    lorenz96,
    motion,
    temporal_order,
    wide_copying,
    wide_digits,
    wide_motion,
    wide_text,
)
from studies.recordings.tasks._task import Run, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        adding.TASK,
        copying.TASK,
        language.TASK,
        motion.TASK,
        delayed_digits.TASK,
        lorenz96.TASK,
        adding_tanh.TASK,
        temporal_order.TASK,
        wide_motion.TASK,
        wide_copying.TASK,
        wide_digits.TASK,
        wide_text.TASK,
    )
}
"""Every recorded task by its name."""

__all__ = ["TASKS", "Run", "Task"]
