"""What breaks, and when: drawn from a seed, so that one seed always breaks the same."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

WORKER_KILLED = "worker killed"
WORKER_STOPPED = "worker stopped"
CAMPAIGN_KILLED = "campaign killed"
SERVER_KILLED = "server killed"
CONNECTIONS_CUT = "connections cut"
DISK_FULL = "disk full"

WEIGHTS = {
    WORKER_KILLED: 3,
    WORKER_STOPPED: 3,
    CAMPAIGN_KILLED: 1,
    SERVER_KILLED: 2,
    CONNECTIONS_CUT: 3,
    DISK_FULL: 3,
}
"""How often each is drawn, beside the others that a storage can have."""

OF_SERVERS = (WORKER_KILLED, WORKER_STOPPED, CAMPAIGN_KILLED, SERVER_KILLED, CONNECTIONS_CUT)
OF_JOURNALS = (WORKER_KILLED, WORKER_STOPPED, CAMPAIGN_KILLED, DISK_FULL)

HEARTBEAT = 1
"""Seconds between signs of life of the workers."""

PATIENCE = 20.0
"""Seconds that a worker waits for a database: a server restarts in less, on a busy machine too."""

SHORT = (0.0, 4.0)
LONG = (PATIENCE + 2 * HEARTBEAT, PATIENCE + 25 * HEARTBEAT)
"""Seconds that a fault lasts. One stop in four is long: then the worker counts as dead, and may
lose the lock on a journal, which is taken from who does not move for 30 s."""


@dataclass(frozen=True)
class Fault:
    """One thing that breaks.

    Args:
        at: Seconds after the first report.
        kind: What.
        pick: Which of several, in [0, 1); of a disk, how far it fills.
        seconds: How long until it is mended.
    """

    at: float
    kind: str
    pick: float
    seconds: float


def draw_faults(kinds: tuple[str, ...], seed: object, *, seconds: float, gap: float) -> list[Fault]:
    """Draw faults at random moments.

    Args:
        kinds: Those that may happen.
        seed: Equal seeds draw equal faults; those of a longer run begin with those of a shorter.
        seconds: How long things break.
        gap: Mean seconds from one to the next.
    """
    drawn = random.Random(str(seed))
    weights: Mapping[str, int] = {kind: WEIGHTS[kind] for kind in kinds}
    faults, at = [], 0.0
    while (at := at + drawn.expovariate(1 / gap)) < seconds:
        (kind,) = drawn.choices(list(weights), list(weights.values()))
        long = kind == WORKER_STOPPED and drawn.random() < 0.25
        faults.append(Fault(at, kind, drawn.random(), drawn.uniform(*(LONG if long else SHORT))))
    return faults
