"""Motion capture: the paper's signal prediction task (section 5.1 and appendix A.2)."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lyap_optuna.data import _files

URL = (
    "https://raw.githubusercontent.com/chaneyddtt/"
    "Convolutional-Sequence-to-Sequence-Model-for-Human-Dynamics/"
    "f27ccb4ed5b0568cde2b7cf096dd2683c901b4d8/data/cmu_mocap/"
)
ACTIVITIES = ("basketball", "soccer", "walking", "jumping")
TRAIN_FRACTION = 0.8
SMALLEST_STD = 1e-4


@dataclass(frozen=True)
class MotionCapture:
    """Recordings of human motion, normalised and split 80/20 in time.

    Attributes:
        train: For each recording its first 80 %, ``(frames, features)`` float32.
        valid: For each recording the rest.
        dimensions: Which dimensions of the files the features are.
        scale: ``(features,)``, the standard deviations that they were divided by.
    """

    train: tuple[Tensor, ...]
    valid: tuple[Tensor, ...]
    dimensions: tuple[int, ...]
    scale: Tensor

    @classmethod
    def from_recordings(
        cls, recordings: Sequence[Tensor], features: int | None = 20
    ) -> "MotionCapture":
        """Normalise and split recordings, as :func:`load_mocap` does.

        Args:
            recordings: ``(frames, dimensions)`` each, of the same dimensions.
            features: How many of the dimensions that vary to keep; None for all.

        Raises:
            ValueError: The recordings differ in their dimensions, or ``features`` is not between
                1 and the number of those that vary.
        """
        if len({recording.shape[1] for recording in recordings}) != 1:
            shapes = [tuple(recording.shape) for recording in recordings]
            raise ValueError(f"Recordings must have the same dimensions, but have {shapes}.")
        std = torch.cat([recording.double() for recording in recordings]).std(0, correction=0)
        varying = (std >= SMALLEST_STD).nonzero().flatten()
        if features is not None and not 1 <= features <= len(varying):
            raise ValueError(
                f"features must be between 1 and the {len(varying)} dimensions that vary, but got "
                f"{features!r}."
            )
        kept = varying[:features]
        scaled = [(recording.double() / std)[:, kept].float() for recording in recordings]
        cuts = [int(TRAIN_FRACTION * len(recording)) for recording in scaled]
        return cls(
            train=tuple(r[:cut] for r, cut in zip(scaled, cuts, strict=True)),
            valid=tuple(r[cut:] for r, cut in zip(scaled, cuts, strict=True)),
            dimensions=tuple(kept.tolist()),
            scale=std[kept],
        )


def load_mocap(
    data: str | os.PathLike[str] | None = None,
    *,
    activities: Sequence[str] = ACTIVITIES,
    features: int | None = 20,
) -> MotionCapture:
    """Load recordings of the CMU motion capture database, prepared as in the paper.

    Dimensions whose standard deviation over all frames is under 1e-4 are dropped, the others are
    divided by theirs (their means stay), and the first ``features`` of them are kept.

    Args:
        data: A folder that holds ``cmu_mocap.tar.xz``, or the folder ``cmu_mocap`` with ``train``
            and ``test`` in it; by default the environment variable ``LYAP_DATA``. Without either
            the 24 files are downloaded once (16 MB, free for all uses) and kept in the user's
            cache.
        activities: Which of basketball, soccer, walking and jumping.
        features: How many dimensions to keep; None for all.

    Returns:
        The recordings, in the order of their paths.

    Raises:
        FileNotFoundError: A file is not there, or cannot be downloaded; the message says from
            where, and how to supply it.
        ValueError: The content of one is not what is expected, or an argument is bad.
        ImportError: They must be downloaded and pooch is not installed.
    """
    unknown = [activity for activity in activities if activity not in ACTIVITIES]
    if unknown or not activities:
        raise ValueError(f"activities must be some of {ACTIVITIES}, not {tuple(activities)!r}.")
    known = {
        path: sha256 for path, sha256 in _registry().items() if path.split("/")[1] in activities
    }
    contents = _files.read_tree(_files.data_folder(data), "cmu_mocap", URL, known)
    recordings = [_parse(content, path) for path, content in zip(known, contents, strict=True)]
    return MotionCapture.from_recordings(recordings, features)


def read_recording(path: str | os.PathLike[str]) -> Tensor:
    r"""Read one recording: a line of numbers separated by commas for each frame.

    Returns:
        ``(frames, dimensions)`` float64.

    Raises:
        ValueError: It is something else.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lyap_optuna.data import read_recording
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "recording.txt")
        ...     _ = file.write_text("0.5,1\n-1e-1,2\n")
        ...     read_recording(file).tolist()
        [[0.5, 1.0], [-0.1, 2.0]]
    """
    return _parse(Path(path).read_bytes(), str(path))


def _parse(content: bytes, name: str) -> Tensor:
    try:
        numbers = np.loadtxt(io.BytesIO(content), delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{name} is not a table of numbers separated by commas: {error}") from None
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds a number that is not finite.")
    return torch.from_numpy(numbers)


def windows(recordings: Sequence[Tensor], length: int) -> Tensor:
    """Cut every window of ``length`` consecutive frames out of recordings.

    Args:
        recordings: ``(frames, features)`` each; one that is too short gives no window.
        length: Frames of a window.

    Returns:
        ``(windows, length, features)``.

    Raises:
        ValueError: No recording is long enough.

    Example:
        >>> import torch
        >>> from lyap_optuna.data import windows
        >>> windows([torch.arange(4.0).view(4, 1), torch.zeros(2, 1)], length=3).squeeze(2)
        tensor([[0., 1., 2.],
                [1., 2., 3.]])
    """
    long = [recording for recording in recordings if len(recording) >= length]
    if not long:
        raise ValueError(f"No recording has {length} frames.")
    return torch.cat([recording.unfold(0, length, 1).transpose(1, 2) for recording in long])


def _registry() -> dict[str, str]:
    """Return the SHA-256 of each file by its path."""
    lines = Path(__file__).with_name("cmu_mocap.sha256").read_text("ascii").splitlines()
    return {path: sha256 for sha256, path in (line.split() for line in lines)}
