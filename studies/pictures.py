"""Every picture of README and docs, made anew: ``make pictures`` (five minutes on one core).

    python -m studies.pictures               # runs the demo, then draws: docs/images, and the pages
    python -m studies.pictures --reuse       # draws again, of the demo that was run last
    python -m studies.pictures --demo lyap-optuna-demo --output pictures   # of a demo; no page
    python -m studies.pictures --studies studies-output    # those of the studies, from their HTML

All pictures in ``docs/images`` are of one run of the demo: the one that README tells of, whose
output is written there too. ``docs/images/made.json`` says what they were made of; the tests
compare it with what is there now.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lyap_optuna._files import write_whole
from studies.pages import write_block

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

    from lyap_optuna.prediction import EvidenceSkill

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
MADE = "made.json"
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
MARK = "python -m studies.pictures"
STUDY = "lyap-optuna-demo"

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_OPTIONS = (
    "--no-sandbox",  # refuses to run as root otherwise; it opens pages of this machine only
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
)

_WIDTH = 1366
_FIGURE = (720, 440)
"""Pixels: about the column of a page of the documentation."""

_SETTLED = 1_500
"""Milliseconds in which the dashboard has drawn, after its last figure has come in."""

_QUALITY = 0.9
"""Of WebP: letters are sharp, and a page of figures takes a third of what PNG does."""


_FIRST = ("plateaus", "What predicts after one epoch", "", "")
"""README's first picture, of the recorded studies."""


class Stack(NamedTuple):
    """Pages of figures, one below the other in a picture.

    Args:
        pages: HTML files that the study's command leaves in its folder of results.
        width: In pixels.
        height: Of each page, in pixels.
    """

    pages: tuple[str, ...]
    width: int
    height: int


STUDY_PICTURES = {
    "charrnn/evolution.png": Stack(("charrnn-evolution.html",), 1250, 380),
    "charrnn/figure.png": Stack(("charrnn.html",), 1200, 470),
    "convergence/figure.png": Stack(("convergence.html",), 1200, 760),
    "cost/figure.png": Stack(("cost.html",), 1000, 420),
    "hyperopt/figure.png": Stack(("hyperopt-charrnn.html", "hyperopt-mocap.html"), 780, 420),
    "mocap/figure.png": Stack(("mocap.html",), 1200, 470),
    "regimes/figure.png": Stack(("regimes.html",), 1150, 850),
    "spectrum_statistics/correlations.png": Stack(
        ("spectrum_statistics-correlations.html",), 800, 420
    ),
    "spectrum_statistics/figure.png": Stack(("spectrum_statistics.html",), 1300, 540),
}
"""Pictures of the studies. Those take hours and are not run again here: ``--studies`` draws what
their commands have left, and the tests run each study at the size of seconds."""


class Figure(NamedTuple):
    """A figure of the gallery."""

    id: str
    name: str
    call: str
    caption: str
    draw: "Callable[[optuna.Study], go.Figure | None]"

    @property
    def file(self) -> str:
        """Name of its picture."""
        return f"figure-{self.id}.webp"


def gallery() -> list[Figure]:
    """Return the figures of a study, then those of a trial and of a network."""
    from lyap_optuna.visualization._figures import FIGURES, Numbers

    def of(spec: Any) -> "Callable[[optuna.Study], go.Figure | None]":
        def draw(study: "optuna.Study") -> "go.Figure | None":
            info = Numbers(study).of(spec)
            return None if info is None else spec.draw(info, study, None)

        return draw

    return [
        *(Figure(s.id, s.name, s.call, s.caption, of(s)) for s in FIGURES),
        Figure(
            "explanation",
            "Why a trial ended as it did",
            "plot_explanation(study, trial_number)",
            "What a trial reported, and at each recorded decision what was predicted of it, with "
            "the threshold of the best at that moment.",
            _explanation,
        ),
        Figure(
            "spectrum",
            "Spectrum of a network",
            "plot_spectrum(spectrum)",
            "All exponents of one network, here an untrained LSTM, with a band of one standard "
            "deviation over its inputs.",
            lambda _: _of_network("plot_spectrum"),
        ),
        Figure(
            "convergence",
            "Convergence of the exponents",
            "plot_convergence(spectrum)",
            "Running estimates over time steps. A line that still slopes at the end says that the "
            "window is too short for its exponent.",
            lambda _: _of_network("plot_convergence"),
        ),
    ]


def _explanation(study: "optuna.Study") -> "go.Figure | None":
    from lyap_optuna import visualization
    from lyap_optuna.prediction import rank_trials

    number = _told_trial(study, [trial.number for trial in rank_trials(study)])
    return visualization.plot_explanation(study, number)


def _told_trial(study: "optuna.Study", ranking: list[int]) -> int:
    """Return the best-ranked pruned trial, which has most to tell; else the best."""
    trials = study.get_trials(deepcopy=False)
    pruned = [n for n in ranking if trials[n].state.name == "PRUNED"]
    return (pruned or ranking)[0]


def _of_network(plot: str) -> "go.Figure":
    import torch

    from lyap_optuna import visualization
    from lyap_optuna.spectrum import lyapunov_spectrum

    generator = torch.Generator().manual_seed(0)
    lstm = torch.nn.LSTM(8, 32)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.uniform_(-0.4, 0.4, generator=generator)
    inputs = torch.randn(200, 10, 8, generator=generator)
    figure: go.Figure = getattr(visualization, plot)(
        lyapunov_spectrum(lstm, inputs, keep_history=True)
    )
    return figure


def plateaus() -> "go.Figure":
    """Draw what predicts the final loss after one epoch, on the recorded tasks with a plateau."""
    import plotly.graph_objects as go

    from lyap_optuna.prediction import prediction_skill
    from lyap_optuna.visualization import _style
    from studies.pruning.__main__ import PLATEAUS
    from studies.pruning.recorded import load

    kinds = {
        "loss": ("the loss", _style.GREY),
        "exponents": ("exponents", _style.BLUE),
        "displacement": ("how far training has moved them", _style.VERMILLION),
    }
    skills: dict[str, dict[str, EvidenceSkill]] = {}
    for name in PLATEAUS:
        recording = load(name)
        if "full" in recording.states:
            recording = recording.with_state("full")
        skills[name] = {s.evidence: s for s in prediction_skill(recording.to_study(), steps=(1,))}
    figure = go.Figure()
    for kind, (label, color) in kinds.items():
        known = [skills[name][kind] for name in PLATEAUS]
        values = [0.0 if s.rank_correlation is None else s.rank_correlation for s in known]
        ends = [s.interval or (value, value) for s, value in zip(known, values, strict=True)]
        figure.add_bar(
            name=label,
            x=[name.replace("_", "<br>") for name in PLATEAUS],
            y=values,
            marker_color=color,
            error_y={
                "array": [upper - v for (_, upper), v in zip(ends, values, strict=True)],
                "arrayminus": [v - lower for (lower, _), v in zip(ends, values, strict=True)],
                "symmetric": False,
                "thickness": 1,
                "width": 2,
            },
        )
    figure.update_layout(
        title=_style.title("After one epoch: what predicts the final loss?"),
        yaxis_title="rank correlation, out of sample",
        legend=_style.LEGEND,
        barmode="group",
    )
    return figure


def gallery_block(figures: list[Figure]) -> str:
    """Return the gallery as Markdown, for ``docs/figures.md``."""
    return "\n\n".join(
        f"## {f.name}\n\n"
        + (f"`lyap.visualization.{f.call}`\n\n" if f.call else "")
        + f"{f.caption}\n\n![{f.name}](images/{f.file})"
        for f in figures
    )


# The browser ----------------------------------------------------------------------------------


@contextmanager
def _browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise click.ClickException("There is no Chromium on this machine: make browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(BROWSER_OPTIONS))
        yield launched
        launched.close()


def _webp(browser: Any, png: bytes) -> bytes:
    """Return a screenshot as WebP, which the browser writes and Python does not."""
    page = browser.new_page()
    encoded = page.evaluate(
        """async ([png, quality]) => {
            const image = new Image();
            image.src = "data:image/png;base64," + png;
            await image.decode();
            const canvas = document.createElement("canvas");
            canvas.width = image.width;
            canvas.height = image.height;
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL("image/webp", quality).split(",")[1];
        }""",
        [base64.b64encode(png).decode(), _QUALITY],
    )
    page.close()
    return base64.b64decode(encoded)


def draw_figures(browser: Any, study: "optuna.Study", figures: list[Figure]) -> dict[str, bytes]:
    """Draw figures on no background, by the name of their file; those without data not."""
    drawn = {}
    with _paper(browser) as draw:
        for figure in figures:
            found = figure.draw(study)
            if found is not None:
                drawn[figure.file] = _webp(browser, draw(found, figure.id))
    return drawn


@contextmanager
def _paper(browser: Any) -> "Iterator[Callable[[go.Figure, str], bytes]]":
    """Yield what draws a figure as PNG, on no background."""
    from plotly.offline import get_plotlyjs

    from lyap_optuna.visualization._publication import small

    width, height = _FIGURE
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_content(f"<style>body {{ margin: 0 }}</style><script>{get_plotlyjs()}</script>")

    def draw(figure: "go.Figure", name: str) -> bytes:
        page.evaluate(
            """async figure => {
                document.body.innerHTML = "<div id='figure'></div>";
                await Plotly.newPlot("figure", figure.data, figure.layout, {staticPlot: true});
            }""",
            json.loads(small(figure, name).update_layout(width=width, height=height).to_json()),
        )
        png: bytes = page.locator("#figure").screenshot(omit_background=True)
        return png

    yield draw
    page.close()


def run_notebook(browser: Any) -> None:
    """Run ``docs/notebook.ipynb`` and keep in it what it prints, and its figures as pictures."""
    import nbformat
    import plotly.graph_objects as go
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = dict(os.environ)
    os.environ.update(PLOTLY_RENDERER="plotly_mimetype", PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm would like ipywidgets
    try:
        NotebookClient(notebook, timeout=600).execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
    with _paper(browser) as draw:
        for cell in notebook.cells:
            cell.metadata.clear()  # when it ran, which is news in every version
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                figure = data.pop("application/vnd.plotly.v1+json", None)
                if figure is not None:
                    drawn = draw(go.Figure(figure["data"], figure["layout"]), "notebook")
                    output["data"] = {"image/png": base64.b64encode(drawn).decode()}
    write_whole(NOTEBOOK, nbformat.writes(notebook) + "\n")


def notebook_code() -> str:
    """Return the code of the notebook, without what it has put out."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def photograph_dashboard(browser: Any, study: "optuna.Study") -> dict[str, bytes]:
    """Take pictures of a study in optuna-dashboard: figures, first page, a trial as it is served.

    The last one is of the trial as optuna-dashboard shows it when it is started by itself.
    """
    from optuna_dashboard import wsgi

    from lyap_optuna.dashboard import make_dashboard, publish
    from lyap_optuna.prediction import rank_trials

    publish(study)
    told = _told_trial(study, [trial.number for trial in rank_trials(study)])
    server = make_dashboard(study._storage, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    page = browser.new_page(viewport={"width": _WIDTH, "height": 900})
    page.set_default_timeout(120_000)  # on a busy machine
    taken = {}
    try:
        home = f"http://127.0.0.1:{server.server_port}/dashboard/studies/{study._study_id}"
        page.goto(home)
        figures = page.locator("[id^='user-defined-plot:']")
        figures.last.locator(".main-svg").first.wait_for()
        height = page.evaluate("document.documentElement.scrollHeight")
        page.set_viewport_size({"width": _WIDTH, "height": height})
        page.wait_for_timeout(_SETTLED)
        first, last = figures.first.bounding_box(), figures.last.bounding_box()
        top, bottom = first["y"] - 16, last["y"] + last["height"] + 16
        left = first["x"] - 16
        part = {"x": left, "y": top, "width": _WIDTH - left, "height": bottom - top}
        taken["figures.webp"] = page.screenshot(clip=part)
        # Down to the first row of our figures: what the page looks like, not all of it.
        rest = {"x": 0, "y": 0, "width": _WIDTH, "height": first["y"] + first["height"] + 16}
        taken["dashboard.webp"] = page.screenshot(clip=rest)
        page.set_viewport_size({"width": _WIDTH, "height": 900})
        page.goto(f"{home}/trials?numbers={told}")
        page.get_by_text("Explanation").wait_for()
        page.set_viewport_size({"width": _WIDTH, "height": 1_330})
        page.wait_for_timeout(_SETTLED)
        taken["trial.webp"] = page.screenshot()
        server.set_app(wsgi(study._storage))
        page.reload()
        page.get_by_text("Explanation").wait_for()
        page.wait_for_timeout(_SETTLED)
        taken["trial-plain.webp"] = page.screenshot()
    finally:
        page.close()
        server.shutdown()
        server.server_close()
        thread.join()
    return {name: _webp(browser, png) for name, png in taken.items()}


# What they are made of ------------------------------------------------------------------------


def inputs() -> dict[str, str]:
    """Return the files that draw the pictures, each with the beginning of its SHA-256."""
    package = ROOT / "lyap_optuna"
    files = [ROOT / "studies" / "pictures.py", package / "demo.py"]
    for folder in ("dashboard", "visualization"):
        files += (package / folder).glob("*.py")
    return {file.relative_to(ROOT).as_posix(): digest(file.read_bytes()) for file in sorted(files)}


def digest(content: bytes) -> str:
    """Return the beginning of a SHA-256, which is enough to see that something has changed."""
    return hashlib.sha256(content).hexdigest()[:16]


def _run_demo(folder: Path, options: list[str]) -> str:
    """Run the demo in a folder, as README says; return what it prints."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    programs = Path(sys.executable).parent
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": path, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(ROOT)
    lines = []
    with subprocess.Popen(
        [programs / "lyap-optuna", "demo", *options],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            click.echo(line, nl=False)
            lines.append(line)
    if process.returncode:
        raise click.ClickException("The demo has failed; nothing was drawn.")
    printed = "".join(lines)
    write_whole(folder / "printed.txt", printed)
    return printed


def _pictures(database: Path) -> tuple[dict[str, bytes], list[Figure]]:
    import optuna

    if not database.exists():
        raise click.ClickException(f"There is no demo in {database.parent}: it holds no study.db.")
    url = f"sqlite:///{database.as_posix()}"
    study = optuna.load_study(study_name=STUDY, storage=url)
    figures = gallery()
    with _browser() as browser:
        drawn = draw_figures(browser, study, figures)
        drawn |= draw_figures(browser, study, [Figure(*_FIRST, lambda _: plateaus())])
        return {**photograph_dashboard(browser, study), **drawn}, figures


def _write(folder: Path, pictures: Mapping[str, bytes]) -> None:
    for name, content in sorted(pictures.items()):
        write_whole(folder / name, content)
        click.echo(f"{folder / name}: {len(content) / 1000:.0f} kB")


def draw_studies(browser: Any, pages: Path, into: Path) -> list[str]:
    """Draw the pictures of the studies whose pages are in a folder; return which."""
    drawn = []
    with tempfile.TemporaryDirectory() as folder:
        for picture, (names, width, height) in STUDY_PICTURES.items():
            files = [(pages / name).resolve() for name in names]
            if not all(file.exists() for file in files):
                continue
            stack = Path(folder) / "stack.html"
            size = f"width={width} height={height} style='display: block; border: 0'"
            frames = "".join(f"<iframe src='{file.as_uri()}' {size}></iframe>" for file in files)
            stack.write_text(f"<body style='margin: 0'>{frames}")
            page = browser.new_page(viewport={"width": width, "height": height * len(files)})
            page.goto(stack.as_uri())
            for index in range(len(files)):
                frame = page.frame_locator("iframe").nth(index)
                frame.locator(".main-svg").first.wait_for()
            write_whole(into / picture, page.screenshot())
            page.close()
            drawn.append(picture)
    return drawn


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--reuse", is_flag=True, help="Draw of the demo that this command ran last.")
@click.option(
    "--demo",
    "demo_folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Draw of a demo in this folder; needs --output, and writes no page.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the pictures, in place of docs/images and the pages.",
)
@click.option(
    "--studies",
    "study_pages",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Draw the studies' pictures of the pages in this folder, and nothing else.",
)
@click.argument("demo_options", nargs=-1)
def main(
    reuse: bool,
    demo_folder: Path | None,
    output: Path | None,
    study_pages: Path | None,
    demo_options: tuple[str, ...],
) -> None:
    """Make the pictures of README and docs; DEMO_OPTIONS go to ``lyap-optuna demo``."""
    if study_pages is not None:
        with _browser() as browser:
            for picture in draw_studies(browser, study_pages, ROOT / "studies"):
                click.echo(f"studies/{picture}")
        return
    if demo_folder is not None:
        if output is None:
            raise click.UsageError("--demo needs --output: the pages tell of a demo of their own.")
        _write(output, _pictures(demo_folder / "study.db")[0])
        return
    folder = ROOT / "build" / "pictures"
    known = folder / "printed.txt"
    if reuse and not known.exists():
        raise click.UsageError("--reuse needs a demo that this command has run: leave it out.")
    printed = known.read_text() if reuse else _run_demo(folder, list(demo_options))
    pictures, figures = _pictures(folder / "lyap-optuna-demo" / "study.db")
    _write(output or IMAGES, pictures)
    if output is None:
        missing = [figure.id for figure in figures if figure.file not in pictures]
        if missing:
            raise click.ClickException(f"The demo was too small for {', '.join(missing)}.")
        write_block(ROOT / "README.md", f"{MARK}: demo", f"```\n{printed.strip()}\n```")
        write_block(ROOT / "docs" / "figures.md", f"{MARK}: gallery", gallery_block(figures))
        with _browser() as browser:
            run_notebook(browser)
        made = {
            "inputs": inputs(),
            "notebook": digest(notebook_code().encode()),
            "pictures": {name: digest(content) for name, content in sorted(pictures.items())},
            "studies": {
                name: digest((ROOT / "studies" / name).read_bytes()) for name in STUDY_PICTURES
            },
            "demo": digest(printed.strip().encode()),
        }
        write_whole(IMAGES / MADE, json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
