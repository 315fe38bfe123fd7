"""What the figures of a study have in common, as checks."""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import optuna

from lyap_optuna import visualization
from lyap_optuna.testing._expect import expect, require
from lyap_optuna.testing._studies import study_of_everything, wide_study
from lyap_optuna.visualization._figures import Numbers
from lyap_optuna.visualization._spec import FigureSpec

_MAX_BYTES = 2_000_000
_MARKUP = "<>&*_`"
_DIRECTIONS = ("minimize", "maximize")


def _drawn_if_any(
    spec: FigureSpec[Any], study: optuna.Study, most: int | None = None
) -> dict[str, Any] | None:
    """Return the figure as what a browser is sent; None where there are no numbers for it."""
    try:
        info = Numbers(study).of(spec)
        figure = None if info is None else spec.draw(info, study, most)
    except Exception as error:
        of = f"{len(study.trials)} trials to {study.direction.name}, drawn with most={most}"
        raise ValueError(f"{spec.id}: {error!r} of a study of {of}.") from error
    return None if figure is None else json.loads(figure.to_json())


def _drawn(spec: FigureSpec[Any], study: optuna.Study, most: int | None = None) -> dict[str, Any]:
    """Return the figure of a study that has numbers for each."""
    drawn = _drawn_if_any(spec, study, most)
    if drawn is None:
        raise ValueError(f"{spec.id}: info() finds nothing in a study that has everything.")
    return drawn


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        yield from (text for item in part.values() for text in _texts(item))
    elif isinstance(part, list):
        yield from (text for item in part for text in _texts(item))


def _places(parts: Iterable[Any], names: Iterable[object]) -> Iterator[str]:
    """Yield where each item of a figure is, as ``layout.xaxis.tickfont``."""
    for name, part in zip(names, parts, strict=True):
        yield str(name)
        if isinstance(part, dict):
            below = _places(part.values(), part)
        elif isinstance(part, list):
            below = _places(part, range(len(part)))
        else:
            continue
        yield from (f"{name}.{place}" for place in below)


def it_draws_the_numbers_that_it_asked_for(spec: FigureSpec[Any]) -> None:
    """A study with readouts, reports and values, of either direction, has traces and a title."""
    for direction, most in itertools.product(_DIRECTIONS, (None, 10)):
        drawn = _drawn(spec, study_of_everything(direction=direction), most)
        require(drawn["data"], f"{spec.id}: the figure has no trace.")
        require(drawn["layout"]["title"]["text"], f"{spec.id}: the figure has no title.")


def few_trials_suffice_or_there_is_no_figure(spec: FigureSpec[Any]) -> None:
    """A study of one trial, or of a few, has a figure with traces or none, but no error."""
    for direction, n_trials, most in itertools.product(_DIRECTIONS, (1, 2, 5), (None, 1)):
        study = study_of_everything(n_trials, direction=direction)
        drawn = _drawn_if_any(spec, study, most)
        require(drawn is None or drawn["data"], f"{spec.id}: no trace of {n_trials} trials.")


def at_most_so_many_trials_are_drawn(spec: FigureSpec[Any]) -> None:
    """The figure of at most ten trials is of one size, however many the study has."""
    few, many = (len(json.dumps(_drawn(spec, wide_study(n), 10)["data"])) for n in (10, 200))
    require(
        many < 1.5 * few,
        f"{spec.id}: at most 10 trials take {few} bytes of a study of 10, {many} of one of 200.",
    )


def without_numbers_there_is_no_figure(spec: FigureSpec[Any]) -> None:
    """An empty study has none, whether of one objective or several."""
    several = optuna.create_study(directions=["minimize", "maximize"])
    for study in (optuna.create_study(), several):
        found = Numbers(study).of(spec)
        expect(found, None, f"{spec.id}: info() of an empty study, {len(study.directions)} values")


def its_caption_is_plain_text(spec: FigureSpec[Any]) -> None:
    """The caption holds no markup: it is shown as Markdown, as HTML and as text."""
    require(spec.caption, f"{spec.id}: there is no caption.")
    expect(set(_MARKUP) & set(spec.caption), set(), f"{spec.id}: markup in the caption")


def its_call_draws_it(spec: FigureSpec[Any]) -> None:
    """``call``, where it is given, is a call of :mod:`lyap_optuna.visualization` that draws it."""
    name = spec.call.partition("(")[0]
    if not name:
        return
    require(name in visualization.__all__, f"{spec.id}: lyap_optuna.visualization has no {name}.")
    # The call as people are shown it, of the package's own source.
    figure = eval(spec.call, dict(vars(visualization)), {"study": study_of_everything()})
    require(figure.data, f"{spec.id}: {spec.call} draws no trace.")


def it_fits_light_and_dark(spec: FigureSpec[Any]) -> None:
    """It sets no background, font or colour of text, so that any template works."""
    drawn = _drawn(spec, study_of_everything())
    drawn["layout"].pop("template", None)
    for place in _places([drawn["data"], drawn["layout"]], ("data", "layout")):
        name = place.rpartition(".")[2]
        require(
            not name.endswith(("bgcolor", "font")),
            f"{spec.id}: {place} is set: leave it to the template, which is light or dark.",
        )


def names_are_taken_literally(spec: FigureSpec[Any]) -> None:
    """Markup in the name of a hyperparameter, in a value or in a reason is shown, not obeyed."""
    drawn = _drawn(spec, wide_study(30))
    found = [text for text in _texts([drawn["data"], drawn["layout"]]) if "<img" in text]
    expect(found, [], f"{spec.id}: names that were not escaped (_style.text does)")


def a_thousand_trials_stay_small(spec: FigureSpec[Any]) -> None:
    """The figure of a thousand trials is less than two megabytes."""
    size = len(json.dumps(_drawn(spec, wide_study(1000))))
    require(size < _MAX_BYTES, f"{spec.id}: {size} bytes for 1,000 trials, over {_MAX_BYTES}.")


def the_study_is_left_as_it_is(spec: FigureSpec[Any]) -> None:
    """Drawing writes nothing to the study."""
    study = study_of_everything()
    before = repr((study.trials, study.user_attrs))
    _drawn(spec, study)
    expect(repr((study.trials, study.user_attrs)), before, f"{spec.id}: the study afterwards")


FIGURE_CHECKS = (
    it_draws_the_numbers_that_it_asked_for,
    few_trials_suffice_or_there_is_no_figure,
    at_most_so_many_trials_are_drawn,
    without_numbers_there_is_no_figure,
    its_caption_is_plain_text,
    its_call_draws_it,
    it_fits_light_and_dark,
    names_are_taken_literally,
    a_thousand_trials_stay_small,
    the_study_is_left_as_it_is,
)
"""What every figure of a study does, each a function of a ``FigureSpec``."""
