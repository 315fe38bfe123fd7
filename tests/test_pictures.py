"""Every picture of README and docs comes from a command, and is as old as what it shows."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from _studies import specs, study_of

from studies import pictures
from studies.pages import read_block

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "api").glob("*.md")),
    *sorted((ROOT / "studies").glob("*/*.md")),
]
MADE = json.loads((pictures.IMAGES / pictures.MADE).read_text())
AGAIN = "make pictures (PICTURES=--reuse, where only the drawing has changed)"


def _shown() -> set[str]:
    found = set()
    for page in PAGES:
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)|<img[^>]*src=\"([^\"]+)", page.read_text()):
            target = (page.parent / (link[0] or link[1])).resolve()
            found.add(target.relative_to(ROOT).as_posix())
    return found


def _made() -> set[str]:
    return {f"docs/images/{name}" for name in MADE["pictures"]} | {
        f"studies/{name}" for name in pictures.STUDY_PICTURES
    }


def test_every_picture_that_a_page_shows_is_made_and_every_one_made_is_shown() -> None:
    assert _shown() == _made()
    there = {path.relative_to(ROOT).as_posix() for path in pictures.IMAGES.iterdir()}
    assert there == {name for name in _made() if name.startswith("docs/")} | {
        f"docs/images/{pictures.MADE}"
    }


def test_pictures_are_those_that_were_made() -> None:
    for folder, kind in ((pictures.IMAGES, "pictures"), (ROOT / "studies", "studies")):
        now = {name: pictures.digest((folder / name).read_bytes()) for name in MADE[kind]}
        assert now == MADE[kind]
    assert set(MADE["studies"]) == set(pictures.STUDY_PICTURES)


def test_no_picture_is_older_than_what_draws_it() -> None:
    changed = {name for name, of in pictures.inputs().items() if MADE["inputs"].get(name) != of}
    gone = set(MADE["inputs"]) - set(pictures.inputs())
    assert not changed | gone, f"Pictures are older than these files. To make them anew: {AGAIN}"


def test_readme_tells_of_the_demo_that_the_pictures_show() -> None:
    block = read_block((ROOT / "README.md").read_text(), f"{pictures.MARK}: demo")
    printed = block.strip().removeprefix("```").removesuffix("```").strip()
    assert pictures.digest(printed.encode()) == MADE["demo"], AGAIN


def test_the_notebook_carries_what_its_code_puts_out() -> None:
    assert pictures.digest(pictures.notebook_code().encode()) == MADE["notebook"], AGAIN
    cells = json.loads(pictures.NOTEBOOK.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == pictures.notebook_code().count("lyap.visualization.plot_")
    assert any(output["output_type"] == "stream" for output in outputs)


def test_the_page_of_figures_has_every_figure_with_its_caption() -> None:
    block = read_block((ROOT / "docs" / "figures.md").read_text(), f"{pictures.MARK}: gallery")
    assert block.strip() == pictures.gallery_block(pictures.gallery()), AGAIN


@pytest.mark.slow
def test_figures_are_drawn_without_a_background(browser: Any) -> None:
    study = study_of(specs("plateau", 24, first=1))
    figures = pictures.gallery()
    drawn = pictures.draw_figures(browser, study, figures)
    without_data = {"figure-pruning.webp", "figure-spectra.webp"}
    assert set(drawn) == {figure.file for figure in figures} - without_data
    for content in drawn.values():
        assert content[:4] + content[8:12] == b"RIFFWEBP"
        assert content[12:16] == b"VP8X"  # the format that can have an alpha channel,
        assert content[20] & 0x10  # and this one does
        assert len(content) < 100_000


@pytest.mark.slow
def test_pictures_of_studies_are_drawn_of_their_pages(browser: Any, tmp_path: Path) -> None:
    import plotly.graph_objects as go

    for name in pictures.STUDY_PICTURES["hyperopt/figure.png"].pages:
        go.Figure(go.Scatter(y=[1, 2])).write_html(tmp_path / name)
    assert pictures.draw_studies(browser, tmp_path, tmp_path) == ["hyperopt/figure.png"]
    png = (tmp_path / "hyperopt" / "figure.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") == 780
    assert int.from_bytes(png[20:24], "big") == 840
