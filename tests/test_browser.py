"""What people see: the real dashboard in a real browser, on SQLite and on PostgreSQL."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from _campaigns import wait_for
from _dashboard import Dashboard
from _studies import specs
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import TrialState
from optuna_dashboard import save_note

import lyap_optuna as lyap
from lyap_optuna.visualization._figures import FIGURES

NAME = "<img src=x onerror=alert(1)> & **bold** <script>alert(2)</script>"
MINE = "A note of my own,"


def _fill(url: str, artifacts: Path) -> optuna.Study:
    """25 trials made up, one measured by a probe, one that runs."""
    study = optuna.create_study(study_name=NAME, storage=url)
    for i, spec in enumerate(specs("plateau", 25, first=1)):
        series = spec["user_attrs"]["lyapunov:readouts"]
        for readout in series.values():
            drop = abs(readout["max"] - readout["mean"])
            readout["quantiles"] = [readout["max"] - drop * (1 - q / 8) * 2 for q in range(9)]
        last = series[max(series)]
        spec["user_attrs"] |= {"lyapunov:max": last["max"], "lyapunov:mean": last["mean"]}
        if i in (20, 23):
            reports = dict(list(spec["intermediate_values"].items())[:1])
            decision = {"step": 1, "verdict": "pruned", "reason": "<b>no</b> chance", "trial": i}
            spec |= {"state": TrialState.PRUNED, "intermediate_values": reports}
            spec["user_attrs"] |= {"lyapunov:decision": decision, "lyapunov:predicted_value": 3.25}
        study.add_trial(optuna.create_trial(**spec))
    store = FileSystemArtifactStore(artifacts)
    for ended in (True, False):
        trial = study.ask()
        torch.manual_seed(0)
        probe = lyap.LyapunovProbe(
            torch.nn.GRU(3, 6),
            torch.randn(40, 4, 3),
            full_spectrum=True,
            sink=[lyap.DatabaseSink(), lyap.ArtifactSink(store)],
        )
        for step in range(1, 11):
            probe.report(trial, 1.0, step)
            if not ended:
                break
        if ended:
            study.tell(trial, 0.5)
    optuna.create_study(study_name="without readouts", storage=url)
    return study


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_dashboard_shows_what_was_published(
    kind: str,
    browser: Any,
    new_database: Callable[[str], str],
    screenshot: Callable[[Any, str], None],
    tmp_path: Path,
) -> None:
    url = new_database(kind)
    study = _fill(url, tmp_path)
    save_note(study, MINE)
    dashboard = Dashboard(url, "--artifact-dir", str(tmp_path))
    try:
        api = f"api/studies/{study._study_id}"

        def published() -> bool:
            time.sleep(0.5)  # the server is busy enough
            return len(dashboard.json(api)["artifacts"]) == 1

        wait_for(published)
        context = browser.new_context(viewport={"width": 1366, "height": 1000})
        context.set_default_timeout(60_000)
        page = context.new_page()
        problems: list[str] = []
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: problems.append(str(error)))
        home = f"{dashboard.url}dashboard/studies/{study._study_id}"
        _look_at_the_list(page, dashboard.url)
        _look_at_the_study(page, home, lambda name: screenshot(page, f"{kind}-{name}"))
        page.goto(f"{home}/note")
        _look_at_the_note(page)
        screenshot(page, f"{kind}-note")
        _look_at_a_slice(page, home)
        screenshot(page, f"{kind}-slice")
        _look_at_trials(page, home)
        screenshot(page, f"{kind}-trial")
        assert problems == []
        context.close()
    finally:
        errors = dashboard.end()
    assert errors.endswith("Stopping.\n")
    assert "Traceback" not in errors
    assert dashboard.code == 0


def _look_at_the_list(page: Any, url: str) -> None:
    page.goto(f"{url}dashboard")
    page.get_by_text(NAME).wait_for()
    assert page.locator("img[src=x]").count() == 0


def _look_at_the_study(page: Any, home: str, screenshot: Callable[[str], None]) -> None:
    page.goto(home)
    for spec in FIGURES:
        figure = page.locator(f"[id='user-defined-plot:lyapunov-{spec.id}']")
        figure.locator(".main-svg").first.wait_for()
        assert spec.caption[:40] in figure.locator(".gtitle").text_content()
    shown = page.locator("[id^='user-defined-plot:']").evaluate_all("all => all.map(e => e.id)")
    assert shown == [f"user-defined-plot:lyapunov-{spec.id}" for spec in FIGURES]
    _nothing_is_outside(page)
    assert page.get_by_text(NAME).count() > 0
    assert page.locator("img[src=x]").count() == 0

    # The vertical axis of the history.
    page.get_by_role("combobox").first.click()
    for key in ("max", "mean", "predicted_value"):
        page.get_by_role("option", name=f"lyapunov:{key}").wait_for()
    page.get_by_role("option", name="lyapunov:max").click()
    page.locator(".ytitle").get_by_text("lyapunov:max").wait_for()

    height = page.evaluate("document.documentElement.scrollHeight")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.set_viewport_size({"width": 1366, "height": height})
        page.wait_for_timeout(500)
        screenshot(f"study-{theme}")
    page.emulate_media(color_scheme="light")

    # The file of spectra, as a table.
    page.get_by_role("button", name="show artifact table").click()
    for heading in ("exponent_1", "layer_state"):
        page.locator("th", has_text=heading).first.wait_for()
    page.set_viewport_size({"width": 1366, "height": 1000})
    screenshot("spectra")


def _nothing_is_outside(page: Any) -> None:
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wide)
    for title in page.locator(".gtitle").all():
        box = title.bounding_box()
        figure = title.locator("xpath=ancestor::div[contains(@class, 'js-plotly-plot')]")
        outer = figure.bounding_box()
        assert outer["y"] <= box["y"]
        assert box["x"] + box["width"] <= outer["x"] + outer["width"]


def _look_at_the_note(page: Any) -> None:
    page.get_by_role("heading", name="Lyapunov exponents").wait_for()
    text = page.locator("body").inner_text()
    assert MINE in text
    assert "27 of 27 trials have readouts: 24 COMPLETE, 2 PRUNED, 1 RUNNING." in text
    assert "The best trial is" in text
    assert "lyap-optuna:" not in text  # the markers


def _look_at_a_slice(page: Any, home: str) -> None:
    page.goto(f"{home}/analytics")
    page.get_by_role("combobox").first.click()
    page.get_by_role("option", name="lyapunov:mean").click()
    page.wait_for_function(
        "document.getElementById('plot-slice').data.some(t => t.y.some(y => y < 0))"
    )


def _look_at_trials(page: Any, home: str) -> None:
    page.goto(f"{home}/trials?numbers=20")
    page.get_by_text("lyapunov:max").first.wait_for()
    text = page.locator("body").inner_text()
    assert "Trial 20" in text
    for key in ("max", "mean", "predicted_value"):
        assert f"lyapunov:{key}" in text
    assert "Trial 20 was pruned at step 1" in text
    assert "<b>no</b> chance" in text  # the recorded reason, as it is
    _nothing_is_outside(page)
    page.goto(f"{home}/trials?numbers=25")
    for step in (0, 1, 2, 3, 4, 5):
        page.get_by_text(f"lyapunov-spectrum-step-{step}.csv").wait_for()
