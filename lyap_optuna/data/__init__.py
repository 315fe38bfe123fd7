"""Data of the paper's two tasks: found in a folder, in the cache, or downloaded once."""

from lyap_optuna.data._mocap import MotionCapture, load_mocap, read_recording, windows
from lyap_optuna.data._text import CharacterText, load_text, load_war_and_peace, streams

__all__ = [
    "CharacterText",
    "MotionCapture",
    "load_mocap",
    "load_text",
    "load_war_and_peace",
    "read_recording",
    "streams",
    "windows",
]
