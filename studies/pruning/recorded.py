"""The recordings of the source."""

from pathlib import Path

from lyap_optuna.replay import Recording

DATA = Path(__file__).parents[1] / "recordings" / "data"


def load(name: str, state: str = "full") -> Recording:
    """Load a recording of the source, with the readouts of ``state`` where it has them."""
    recording = Recording.load(DATA / f"{name}.json.gz")
    return recording.with_state(state) if state in recording.states else recording
