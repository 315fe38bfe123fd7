"""Text as a sequence of characters: the paper's CharRNN task (appendix A.1)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lyap_optuna.data import _files

WAR_AND_PEACE_URL = "https://cs.stanford.edu/people/karpathy/char-rnn/warpeace_input.txt"
WAR_AND_PEACE_SHA256 = "eaecfcb30408e2bc35ffe69b297127e3a6ca75548c033df4d2e703b5ff711f8d"


@dataclass(frozen=True)
class CharacterText:
    """A text as numbers of characters, split in its own order 80/10/10.

    Attributes:
        train: ``(characters,)`` int64, places in ``alphabet``.
        valid: The same, of the tenth that follows.
        test: The same, of the last tenth.
        alphabet: The distinct characters of the text, sorted.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    alphabet: str


def load_war_and_peace(data: str | os.PathLike[str] | None = None) -> CharacterText:
    """Load Tolstoy's *War and Peace* as the paper's CharRNN task uses it: 82 distinct characters.

    Args:
        data: A folder that holds ``war_and_peace.txt`` or ``warpeace_input.txt``, plain or as
            ``.xz``; by default the environment variable ``LYAP_DATA``. Without either the file
            is downloaded once (3.2 MB, public domain) and kept in the user's cache.

    Returns:
        The 3,202,303 characters, split.

    Raises:
        FileNotFoundError: The file is not there, or cannot be downloaded; the message says from
            where, and how to supply it.
        ValueError: Its content is not what is expected.
        ImportError: It must be downloaded and pooch is not installed.
    """
    content = _files.read_file(
        _files.data_folder(data),
        "war_and_peace.txt",
        WAR_AND_PEACE_URL,
        WAR_AND_PEACE_SHA256,
        aliases=("warpeace_input.txt",),
    )
    return _split(content.decode("utf-8"))


def load_text(path: str | os.PathLike[str]) -> CharacterText:
    """Load any text file in UTF-8.

    Args:
        path: The file.

    Returns:
        Its characters, split.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8, or shorter than 10 characters.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lyap_optuna.data import load_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "text.txt")
        ...     _ = file.write_text("to be or not to be, ")
        ...     text = load_text(file)
        >>> text.alphabet, len(text.train), len(text.valid), len(text.test)
        (' ,benort', 16, 2, 2)
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}).") from None
    if len(text) < 10:
        raise ValueError(f"{path} holds {len(text)} characters; at least 10 can be split.")
    return _split(text)


def _split(text: str) -> CharacterText:
    alphabet = "".join(sorted(set(text)))
    place = {character: i for i, character in enumerate(alphabet)}
    codes = torch.tensor([place[character] for character in text])
    first, second = len(codes) * 8 // 10, len(codes) * 9 // 10
    return CharacterText(codes[:first], codes[first:second], codes[second:], alphabet)


def streams(codes: Tensor, sequences: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a text read in ``sequences`` places at once, as Karpathy's char-rnn does.

    Row i of a batch goes on where row i of the batch before it ended, so that a recurrent state
    can be carried over. What is left at the end of a row is dropped.

    Args:
        codes: ``(characters,)``, as :class:`CharacterText` has them.
        sequences: Rows of a batch.
        steps: Characters of a row.

    Yields:
        Inputs and targets, both ``(sequences, steps)``; targets are one character ahead.

    Raises:
        ValueError: The text is too short for one batch.

    Example:
        >>> import torch
        >>> from lyap_optuna.data import streams
        >>> for inputs, targets in streams(torch.arange(9), sequences=2, steps=2):
        ...     print(inputs.tolist(), targets.tolist())
        [[0, 1], [4, 5]] [[1, 2], [5, 6]]
        [[2, 3], [6, 7]] [[3, 4], [7, 8]]
    """
    length = (len(codes) - 1) // sequences
    if length < steps:
        raise ValueError(
            f"{len(codes)} characters do not fill {sequences} sequences of {steps} steps: take "
            "fewer or shorter ones, or a longer text."
        )
    rows = codes[: length * sequences].view(sequences, length)
    ahead = codes[1 : length * sequences + 1].view(sequences, length)
    for start in range(0, length - steps + 1, steps):
        yield rows[:, start : start + steps], ahead[:, start : start + steps]
