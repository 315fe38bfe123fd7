"""Loaders of the paper's data: from a folder, from the cache, from a server, and without any."""

import hashlib
import io
import lzma
import os
import re
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from lyap_optuna._extras import how_to_install
from lyap_optuna.data import (
    MotionCapture,
    _files,
    _mocap,
    _text,
    load_mocap,
    load_text,
    load_war_and_peace,
    read_recording,
    streams,
    windows,
)

TEXT = "Well, Prince, so Genoa and Lucca are now just family estates.\n" * 10
PATHS = [f"{part}/{a}/{a}_1.txt" for part in ("train", "test") for a in _mocap.ACTIVITIES]
_SHARED = Path(__file__).parents[2] / "shared" / "data"
REAL = Path(os.environ.get(_files.ENVIRONMENT) or _SHARED)
needs_real_files = pytest.mark.skipif(
    not REAL.is_dir(), reason="neither LYAP_DATA nor ../shared/data holds the real files"
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def _no_folder_named(monkeypatch, tmp_path_factory):
    monkeypatch.delenv(_files.ENVIRONMENT, raising=False)
    pooch = pytest.importorskip("pooch")
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(pooch, "os_cache", lambda project: cache / project)


@pytest.fixture
def made_text(monkeypatch):
    content = TEXT.encode()
    monkeypatch.setattr(_text, "WAR_AND_PEACE_SHA256", sha256(content))
    return content


@pytest.fixture
def made_mocap(monkeypatch):
    """Recordings of 6 dimensions, of which the second does not vary."""
    rng = np.random.default_rng(0)
    contents = {}
    for path in PATHS:
        numbers = rng.normal(3, 2, (50, 6))
        numbers[:, 1] = 0.25
        lines = (",".join(map(str, row)) for row in numbers)
        contents[path] = "\n".join(lines).encode()
    known = {path: sha256(content) for path, content in contents.items()}
    monkeypatch.setattr(_mocap, "_registry", lambda: known)
    return contents


def write_archive(folder: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(folder / "cmu_mocap.tar.xz", "w:xz") as tar:
        for path, content in contents.items():
            info = tarfile.TarInfo(f"cmu_mocap/{path}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_files(root: Path, contents: dict[str, bytes]) -> None:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


@pytest.fixture
def server(tmp_path):
    """A web server: its address, its folder, and what it was asked for."""
    root = tmp_path / "served"
    root.mkdir()
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/", root, requests
        httpd.shutdown()
        thread.join()


# From a folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["war_and_peace.txt", "warpeace_input.txt"])
@pytest.mark.parametrize("packed", [False, True])
def test_text_is_found_under_either_name_plain_or_packed(tmp_path, made_text, name, packed):
    content = lzma.compress(made_text) if packed else made_text
    (tmp_path / (name + ".xz" * packed)).write_bytes(content)
    text = load_war_and_peace(tmp_path)
    codes = torch.cat([text.train, text.valid, text.test])
    assert "".join(text.alphabet[i] for i in codes) == TEXT
    assert [len(text.train), len(text.valid), len(text.test)] == [496, 62, 62]


def test_the_environment_names_the_folder(tmp_path, made_text, monkeypatch):
    (tmp_path / "war_and_peace.txt").write_bytes(made_text)
    monkeypatch.setenv(_files.ENVIRONMENT, str(tmp_path))
    assert len(load_war_and_peace().train) == 496


@pytest.mark.parametrize("layout", ["archive", "tree", "inside the tree"])
def test_recordings_are_found_in_every_layout(tmp_path, made_mocap, layout):
    if layout == "archive":
        write_archive(tmp_path, made_mocap)
    else:
        write_files(tmp_path / "cmu_mocap" if layout == "tree" else tmp_path, made_mocap)
    motion = load_mocap(tmp_path, features=3)
    assert motion.dimensions == (0, 2, 3)
    assert [len(r) for r in motion.train] == [40] * 8
    assert [len(r) for r in motion.valid] == [10] * 8
    frames = torch.cat(motion.train + motion.valid)
    assert frames.std(0, correction=0).tolist() == pytest.approx([1, 1, 1], rel=1e-5)
    assert frames.mean(0).tolist() == pytest.approx([1.5, 1.5, 1.5], abs=0.3)  # stays
    assert len(load_mocap(tmp_path, activities=["walking"], features=None).train) == 2


def test_a_folder_that_lacks_the_file_says_which_and_from_where(tmp_path, made_text, made_mocap):
    with pytest.raises(FileNotFoundError, match=r"war_and_peace\.txt .*\.xz.*karpathy"):
        load_war_and_peace(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cmu_mocap\.tar\.xz.*basketball_1.*chaneyddtt"):
        load_mocap(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        load_mocap(tmp_path / "nowhere")
    write_archive(tmp_path, {p: c for p, c in made_mocap.items() if "soccer" not in p})
    with pytest.raises(FileNotFoundError, match="does not hold cmu_mocap/train/soccer/soccer_1"):
        load_mocap(tmp_path)


def test_another_content_is_an_error(tmp_path, made_text, made_mocap):
    (tmp_path / "war_and_peace.txt").write_bytes(made_text + b"!")
    with pytest.raises(ValueError, match="SHA-256"):
        load_war_and_peace(tmp_path)
    write_archive(tmp_path, {**made_mocap, PATHS[3]: b"1,2\n"})
    with pytest.raises(ValueError, match=f"{PATHS[3]} is not the file"):
        load_mocap(tmp_path)


@pytest.mark.parametrize("content", [b"not an archive", lzma.compress(TEXT.encode())[:100]])
def test_a_damaged_archive_is_an_error(tmp_path, made_text, made_mocap, content):
    for name in ("cmu_mocap.tar.xz", "war_and_peace.txt.xz"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="does not unpack"):
        load_mocap(tmp_path)
    with pytest.raises(ValueError, match="does not unpack"):
        load_war_and_peace(tmp_path)


# From the network -----------------------------------------------------------------------------


def test_files_are_downloaded_once(server, made_text, made_mocap, monkeypatch):
    address, root, requests = server
    write_files(root, {"text.txt": made_text, **made_mocap})
    monkeypatch.setattr(_text, "WAR_AND_PEACE_URL", address + "text.txt")
    monkeypatch.setattr(_mocap, "URL", address)
    for _ in range(2):
        assert len(load_war_and_peace().train) == 496
        assert len(load_mocap(features=5).train) == 8
    assert sorted(requests) == sorted(["/text.txt", *(f"/{path}" for path in PATHS)])


def test_a_download_of_another_content_is_an_error(server, made_text, monkeypatch):
    address, root, _ = server
    (root / "text.txt").write_text("a page that says: log in")
    monkeypatch.setattr(_text, "WAR_AND_PEACE_URL", address + "text.txt")
    with pytest.raises(ValueError, match=r"text\.txt returned is not war_and_peace\.txt"):
        load_war_and_peace()


def test_without_network_the_error_says_how_to_supply_the_file(server, made_text, monkeypatch):
    address, _, _ = server
    monkeypatch.setattr(_text, "WAR_AND_PEACE_URL", address + "missing.txt")
    with pytest.raises(FileNotFoundError, match=r"war_and_peace\.txt.*404.*--data.*LYAP_DATA"):
        load_war_and_peace()
    monkeypatch.setattr(_text, "WAR_AND_PEACE_URL", "http://127.0.0.1:9/text.txt")
    with pytest.raises(FileNotFoundError, match=r"127.0.0.1:9/text\.txt \(ConnectionError\)"):
        load_war_and_peace()


def test_without_pooch_the_error_names_the_extra(made_text, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=rf"{re.escape(how_to_install('studies'))}.*LYAP_DATA"):
        load_war_and_peace()


# What is done with them -----------------------------------------------------------------------


def test_streams_go_on_where_they_ended():
    codes = torch.arange(1000)
    batches = list(streams(codes, sequences=3, steps=10))
    assert len(batches) == 33
    inputs = torch.cat([x for x, _ in batches], dim=1)
    targets = torch.cat([y for _, y in batches], dim=1)
    assert torch.equal(targets, inputs + 1)
    assert (inputs.diff(dim=1) == 1).all()
    assert inputs[:, 0].tolist() == [0, 333, 666]
    with pytest.raises(ValueError, match="10 characters do not fill 3 sequences of 10"):
        next(streams(codes[:10], sequences=3, steps=10))


def test_windows_do_not_reach_from_one_recording_into_the_next():
    recordings = [torch.arange(5.0).view(5, 1), 10 + torch.arange(3.0).view(3, 1), torch.ones(1, 1)]
    cut = windows(recordings, 3).squeeze(2)
    assert cut.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [10, 11, 12]]
    with pytest.raises(ValueError, match="No recording has 6 frames"):
        windows(recordings, 6)


def test_bad_files_and_arguments_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 10)
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "words.txt").write_text("1,2\nthree,4\n")
    (tmp_path / "nan.txt").write_text("1,nan\n")
    for name, load, message in (
        ("latin.txt", load_text, "UTF-8"),
        ("short.txt", load_text, "5 characters"),
        ("words.txt", read_recording, "not a table"),
        ("nan.txt", read_recording, "not finite"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            load(tmp_path / name)
    with pytest.raises(ValueError, match="activities"):
        load_mocap(tmp_path, activities=["swimming"])
    recordings = [torch.randn(9, 3), torch.randn(9, 3)]
    with pytest.raises(ValueError, match="between 1 and the 3 dimensions that vary, but got 20"):
        MotionCapture.from_recordings(recordings)
    with pytest.raises(ValueError, match="same dimensions"):
        MotionCapture.from_recordings([torch.randn(9, 3), torch.randn(9, 4)], features=2)


# The real files -------------------------------------------------------------------------------


@needs_real_files
def test_the_real_text():
    text = load_war_and_peace(REAL)
    assert len(text.alphabet) == 82
    assert len(text.train) + len(text.valid) + len(text.test) == 3_202_303
    assert len(text.train) // (100 * 100) == 256  # batches of the paper's epoch


@needs_real_files
def test_the_real_recordings():
    motion = load_mocap(REAL, features=None)
    assert len(motion.train) == 24
    assert sum(map(len, motion.train + motion.valid)) == 13_944
    assert len(motion.dimensions) == 70
    assert load_mocap(REAL).train[0].shape[1] == 20


def test_every_published_file_has_a_hash():
    known = _mocap._registry()
    assert len(known) == 24
    assert all(len(value) == 64 for value in known.values())
