"""Where a file comes from: a folder of the user's, the cache, or its public address."""

import hashlib
import lzma
import os
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from lyap_optuna._extras import how_to_install

ENVIRONMENT = "LYAP_DATA"
"""Names a folder of files, where no folder is passed."""


def data_folder(data: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder that the user names, by argument or environment.

    Raises:
        FileNotFoundError: It does not exist.
    """
    named = data if data is not None else os.environ.get(ENVIRONMENT) or None
    if named is None:
        return None
    folder = Path(named)
    if not folder.is_dir():
        by = "data" if data is not None else f"the environment variable {ENVIRONMENT}"
        raise FileNotFoundError(f"There is no folder {str(folder)!r}, which {by} names.")
    return folder


def read_file(
    folder: Path | None, name: str, url: str, sha256: str, *, aliases: tuple[str, ...] = ()
) -> bytes:
    """Return the content of one file, whose hash is checked.

    Args:
        folder: Where it is, as ``name``, one of ``aliases`` or either with ``.xz``; None for the
            cache, into which it is downloaded once.
        name: Its name in the cache.
        url: Its public address.
        sha256: Hash of the content, unpacked.
        aliases: Other names that it may have in ``folder``.

    Raises:
        FileNotFoundError: It is not in the folder, or cannot be downloaded.
        ValueError: Its content is not what the hash says.
    """
    if folder is None:
        return _download(name, url, sha256).read_bytes()
    for candidate in (name, *aliases):
        if (path := folder / candidate).is_file():
            return _checked(path.read_bytes(), str(path), url, sha256)
        if (path := folder / f"{candidate}.xz").is_file():
            return _checked(_unpacked(path), str(path), url, sha256)
    expected = " or ".join(f"{known} (also as {known}.xz)" for known in (name, *aliases))
    raise FileNotFoundError(
        f"{folder} does not hold {expected}. Download it from {url} into that folder, or name no "
        "folder and it is downloaded."
    )


def read_tree(folder: Path | None, name: str, url: str, sha256: Mapping[str, str]) -> list[bytes]:
    """Return the contents of a tree of files, in the order of ``sha256``, their hashes checked.

    Args:
        folder: It holds ``name.tar.xz``, or the folder ``name``, or the files of that folder.
        name: Name of the tree, also in the cache.
        url: Public address of the tree; the address of each file is this and its path.
        sha256: Hash of each file by its path.

    Raises:
        FileNotFoundError: A file is not there, or cannot be downloaded.
        ValueError: The content of one is not what the hash says.
    """
    if folder is None:
        return [
            _download(f"{name}/{path}", url + path, known).read_bytes()
            for path, known in sha256.items()
        ]
    archive = folder / f"{name}.tar.xz"
    if archive.is_file():
        return _from_archive(archive, name, url, sha256)
    root = folder / name if (folder / name).is_dir() else folder
    contents = []
    for path, known in sha256.items():
        file = root / path
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} holds neither {name}.tar.xz nor the {len(sha256)} files of {name}: "
                f"{file} is missing. Download it from {url}{path}, or name no folder and they are "
                "downloaded."
            )
        contents.append(_checked(file.read_bytes(), str(file), url + path, known))
    return contents


def _from_archive(archive: Path, name: str, url: str, sha256: Mapping[str, str]) -> list[bytes]:
    found: dict[str, bytes] = {}
    try:
        # Members are read, never extracted: their names cannot reach outside.
        with tarfile.open(archive, "r:xz") as tar:
            for member in tar:
                path = member.name.removeprefix("./").removeprefix(f"{name}/")
                if path in sha256 and (content := tar.extractfile(member)) is not None:
                    found[path] = content.read()
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{archive} does not unpack ({error}): replace it.") from None
    for path in sha256:
        if path not in found:
            raise FileNotFoundError(
                f"{archive} does not hold {name}/{path}, which comes from {url}{path}."
            )
    return [
        _checked(found[path], f"{archive}: {path}", url + path, known)
        for path, known in sha256.items()
    ]


def _unpacked(path: Path) -> bytes:
    try:
        return lzma.decompress(path.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{path} does not unpack ({error}): replace it.") from None


def _checked(content: bytes, where: str, url: str, sha256: str) -> bytes:
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise ValueError(
            f"{where} is not the file of {url}: its content has the SHA-256 {actual}, not {sha256}."
        )
    return content


def _download(name: str, url: str, sha256: str) -> Path:
    try:
        import pooch
    except ImportError:
        raise ImportError(
            f"Downloading data needs pooch: {how_to_install('studies')}; or download "
            f"{url} and name the folder it is in (data=, --data, or {ENVIRONMENT})."
        ) from None
    pooch.get_logger().setLevel("WARNING")
    cache = Path(pooch.os_cache("lyap-optuna"))
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=60)
    try:
        return Path(
            pooch.retrieve(url, f"sha256:{sha256}", fname=name, path=cache, downloader=downloader)
        )
    except OSError as error:  # all of requests' errors are
        raise FileNotFoundError(
            f"{name} could not be downloaded from {url} ({_reason(error)}). Download it elsewhere, "
            f"and name the folder that holds it (data=, --data, or {ENVIRONMENT})."
        ) from error
    except ValueError as error:
        raise ValueError(f"What {url} returned is not {name}: {error}") from None


def _reason(error: OSError) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return type(error).__name__ if status is None else f"HTTP status {status}"
