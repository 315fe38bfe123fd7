"""Serving optuna-dashboard, with its answers arranged for people."""

import json
import re
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import BaseStorage

from lyap_optuna._logging import get_logger
from lyap_optuna.dashboard._note import BEGIN
from lyap_optuna.dashboard._publish import optuna_dashboard
from lyap_optuna.records import _keys
from lyap_optuna.visualization._figures import FIGURES
from lyap_optuna.visualization._publication import PREFIX

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

_logger = get_logger(__name__)

_SHORT = 90
"""Characters of an attribute that fit beside the list of trials, 1,366 pixels wide: the dashboard
does not wrap them, and makes the page as wide as the longest (1,024 characters, 8,000 pixels)."""

_IN_NOTE = (_keys.DECISION, _keys.STRETCHES)
"""Attributes that the note of a trial tells in words, as ``lyap-optuna explain`` does."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        _logger.debug(format % args)


def make_dashboard(
    storage: BaseStorage,
    host: str,
    port: int,
    *,
    artifact_store: "ArtifactStore | None" = None,
) -> WSGIServer:
    """Return a server of optuna-dashboard that listens, and serves with ``serve_forever()``.

    Args:
        storage: Any storage.
        host: The address to listen at.
        port: The port; 0 for one that is free, which ``server_port`` then tells.
        artifact_store: Where its files are.

    Raises:
        ImportError: optuna-dashboard is not installed.
        OSError: The port is taken.
    """
    app = wsgi(storage, artifact_store)
    return make_server(host, port, app, server_class=_Server, handler_class=_Handler)


def wsgi(
    storage: str | BaseStorage, artifact_store: "ArtifactStore | None" = None
) -> Callable[..., Iterable[bytes]]:
    """Return optuna-dashboard for a WSGI server, figures in order, attributes of trials short.

    In place of ``optuna_dashboard.wsgi``, which shows the attributes whole. It only serves:
    :func:`~lyap_optuna.dashboard.publish` writes figures and notes.

    Args:
        storage: Any storage, or its URL.
        artifact_store: Where its files are.

    Raises:
        ImportError: optuna-dashboard is not installed.

    Example:
        >>> import optuna
        >>> import lyap_optuna as lyap
        >>> application = lyap.dashboard.wsgi(optuna.storages.InMemoryStorage())
    """
    return _Arranged(optuna_dashboard().wsgi(storage, artifact_store=artifact_store))


class _Arranged:
    """The dashboard's application, a study's answer arranged by :func:`arranged`.

    The dashboard keeps figures in a set, so that their order changes from start to start, and it
    shows all attributes of a trial in full. Neither can be chosen in what is stored.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        path, method = environ.get("PATH_INFO", ""), environ.get("REQUEST_METHOD")
        if method != "GET" or not re.fullmatch(r"/api/studies/\d+", path):
            return self._app(environ, start_response)
        started: list[tuple[str, list[tuple[str, str]]]] = []
        answer = self._app(environ, lambda status, headers, *_: started.append((status, headers)))
        body = b"".join(answer)
        status, headers = started[-1]
        if status.startswith("200"):
            body = json.dumps(arranged(json.loads(body))).encode()
            headers = [(key, value) for key, value in headers if key.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        start_response(status, headers)
        return [body]


def arranged(study: dict[str, Any]) -> dict[str, Any]:
    """Return a study as the dashboard's API gives it, its figures in order, attributes short.

    Only what is shown is changed, nothing that is stored.
    """
    order = {f"{PREFIX}{spec.id}": place for place, spec in enumerate(FIGURES)}
    study["plotly_graph_objects"].sort(key=lambda f: (order.get(f["id"], len(order)), f["id"]))
    for trial in (*study["trials"], *study["best_trials"]):
        for attr in trial["user_attrs"]:
            if attr["key"].startswith("lyapunov:"):
                attr["value"] = _short(attr["key"], attr["value"], trial)
    return study


def _short(key: str, value: str, trial: dict[str, Any]) -> str:
    if key == _keys.READOUTS:
        return "the exponents, step by step: lyap-optuna spectra lists them"
    if key not in _IN_NOTE:
        return value if len(value) <= _SHORT else f"{value[:_SHORT]} ..."
    if BEGIN in trial["note"]["body"]:
        return "in words: above, in the Note"
    return f"in words: lyap-optuna explain --trial-number {trial['number']}"
