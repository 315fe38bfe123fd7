"""The campaign file: one YAML document, validated before anything runs."""

import difflib
import importlib
import inspect
import os
import re
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import yaml
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from lyap_optuna._logging import lost_scheme
from lyap_optuna.campaign._yaml import YAMLFileError, read_yaml

SAME_SEED_EVERYWHERE = frozenset({"QMCSampler", "GridSampler", "BruteForceSampler"})
"""Samplers that share one sequence or grid: Optuna asks for one seed in all processes."""


_YEAR = 366 * 24 * 3600
# What databases count up to, what a machine or cluster can run, what clocks can wait.
_Number = Annotated[int, Field(gt=0, lt=2**31)]
_Processes = Annotated[int, Field(gt=0, le=10_000)]
_Seconds = Annotated[float, Field(gt=0, le=_YEAR)]


class CampaignFileError(ValueError):
    """A campaign file that cannot be used; the message names the line."""


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True
    )


class Component(_Model):
    """A sampler or pruner: the name of Optuna's class (or ``package.module:Class``), options."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the class."""
        return dict(self.model_extra or {})

    def find(self, *modules: str, kind: type[Any] = object) -> type[Any]:
        """Return the class, looked up in ``modules``; a hint names subclasses of ``kind``.

        Raises:
            ValueError: There is none of that name.
        """
        if ":" in self.name:
            module, _, attribute = self.name.partition(":")
            try:
                found = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise ValueError(f"{self.name!r} cannot be imported: {error}") from None
            return _as_class(found, self.name)
        names: list[str] = []
        for module in modules:
            found = importlib.import_module(module)
            if self.name in found.__all__:
                return _as_class(getattr(found, self.name), self.name)
            exported = {name: getattr(found, name) for name in found.__all__}
            classes = {name: value for name, value in exported.items() if inspect.isclass(value)}
            names += [name for name, value in classes.items() if issubclass(value, kind)]
        near = difflib.get_close_matches(self.name, names, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"there is no {self.name!r} in {' or '.join(modules)}.{hint}")


def _as_class(found: object, name: str) -> type[Any]:
    if not inspect.isclass(found):
        raise ValueError(f"{name!r} is not a class")
    return found


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[Component, BeforeValidator(_named)]


class Prune(_Model):
    """Train every configuration, and stop those that the pruner gives up."""

    name: Literal["prune"] = "prune"


class FreezeThaw(_Model):
    """Each worker pauses trials, and goes on with the most promising or begins a new one.

    Args:
        name: ``freeze_thaw``.
        n_steps: Reports of all trials and workers together, after which the campaign ends.
        max_paused: Trials that rest at a time in each worker, with their models in memory.
        checkpoint: Folder in which the objective saves its state under the trial's number
            (``12.pt``, ``12/``). With it trials that rested in a worker that died or was stopped
            go on as new ones.
    """

    name: Literal["freeze_thaw"] = "freeze_thaw"
    n_steps: _Number | None = None
    max_paused: _Number = 100
    checkpoint: str | None = Field(default=None, min_length=1)


class Dask(_Model):
    """Where trials run, if not in processes of this machine.

    Args:
        address: Address of a running scheduler, ``tcp://host:8786``; or
        cluster: A cluster class to start, ``SLURMCluster`` of dask-jobqueue or
            ``package.module:Class``.
        jobs: Jobs that the cluster is scaled to.
        options: Keyword arguments of the class.
    """

    address: str | None = None
    cluster: str | None = None
    jobs: _Processes = 1
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_place(self) -> "Dask":
        if (self.address is None) == (self.cluster is None):
            raise ValueError("give either the address of a scheduler or a cluster to start")
        return self


class CampaignConfig(_Model):
    """What a campaign file says.

    Args:
        study: Name of the study.
        objective: ``package.module:function``; the function takes an Optuna trial.
        trials: Configurations to try: COMPLETE and PRUNED trials.
        direction: ``minimize`` or ``maximize``.
        storage: URL of a database, ``grpc://host:port`` of Optuna's proxy, or the path of a journal
            file. ``${NAME}`` stands for an environment variable.
        sampler: Name of a class in :mod:`optuna.samplers`, or a mapping with ``name`` and options.
        pruner: The same for :mod:`optuna.pruners` and :class:`~lyap_optuna.LyapunovPruner`.
        strategy: ``prune`` or ``freeze_thaw``, or a mapping with ``name`` and the options of
            :class:`FreezeThaw`.
        seed: What the seeds of the samplers are derived from.
        workers: Trials that run at a time; on Dask by default as many as it has threads.
        threads_per_worker: By default the cores of the machine, shared out evenly.
        time_limit: Seconds after which workers stop at their next report.
        max_failures: The run ends with an error when more trials than this have failed in it.
        heartbeat_interval: Seconds between signs of life that a worker leaves in a database.
        retry_seconds: How long a worker waits for a database that does not answer.
        dask: See :class:`Dask`.
    """

    study: str = Field(min_length=1, max_length=512)
    objective: str
    trials: _Number
    direction: Literal["minimize", "maximize"] = "minimize"
    storage: SecretStr | None = None
    sampler: Named = Component(name="TPESampler")
    pruner: Named | None = None
    strategy: Annotated[
        Annotated[Prune | FreezeThaw, Field(discriminator="name")], BeforeValidator(_named)
    ] = Prune()
    seed: int = Field(default=0, ge=0)
    workers: _Processes | None = None
    threads_per_worker: _Processes | None = None
    time_limit: _Seconds | None = None
    max_failures: int = Field(default=20, ge=0)
    heartbeat_interval: Annotated[int, Field(gt=0, le=_YEAR)] = 30
    retry_seconds: _Seconds = 120.0
    dask: Dask | None = None

    _path: Path = PrivateAttr(default=Path("campaign.yaml"))
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @field_validator("objective")
    @classmethod
    def _objective_form(cls, value: str) -> str:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
            raise ValueError(f"must have the form package.module:function, not {value!r}")
        return value

    @field_validator("storage", mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        missing = [n for n in re.findall(r"\$\{(\w+)\}", value) if n not in os.environ]
        if missing:
            raise ValueError(f"the environment variable {missing[0]} is not set")
        value = re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], value)
        if lost_scheme(value):
            raise ValueError(
                "it holds a login, as the URL of a database does, but begins with no scheme such "
                "as postgresql+psycopg://"
            )
        return value

    @field_validator("sampler")
    @classmethod
    def _sampler_can_be_made(cls, value: Component) -> Component:
        make_sampler(value, 0)
        return value

    @field_validator("pruner")
    @classmethod
    def _pruner_can_be_made(cls, value: Component | None) -> Component | None:
        make_pruner(value)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "CampaignConfig":
        if isinstance(self.strategy, FreezeThaw) and self.pruner is not None:
            raise ValueError(
                "pruner has no place beside the strategy freeze_thaw, which decides itself who "
                "goes on"
            )
        return self

    @property
    def path(self) -> Path:
        """The file it was read from; default storages lie beside it."""
        return self._path

    def line_of(self, key: str) -> str:
        """Return file and line of a key, for an error that shows only once it is used."""
        return f"{self._path}, line {self._lines.get(key, 1)}: {key}"


def load_config(path: str | Path) -> CampaignConfig:
    """Read and validate a campaign file.

    Args:
        path: A YAML file.

    Returns:
        What it says.

    Raises:
        CampaignFileError: It cannot be read or is not valid; the message names file and line.
    """
    path = Path(path)
    try:
        content, node = read_yaml(path)
    except YAMLFileError as error:
        raise CampaignFileError(str(error)) from None
    if not isinstance(content, dict):
        raise CampaignFileError(f"{path}, line 1: a campaign file is a mapping of keys to values.")
    try:
        config = CampaignConfig.model_validate(content)
    except ValidationError as error:
        # Without the input: it may hold a password.
        details = error.errors(include_url=False, include_input=False, include_context=False)
        problems = [_told(detail["loc"], _plain(detail), node, path) for detail in details]
        raise CampaignFileError("\n".join(problems)) from None
    config._path = path.resolve()
    config._lines = {key.value: key.start_mark.line + 1 for key, _ in node.value}
    return config


_STRATEGIES: dict[str, type[_Model]] = {"prune": Prune, "freeze_thaw": FreezeThaw}


def _plain(detail: Any) -> str:
    """Return what is wrong, where pydantic speaks of tags."""
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"give {' or '.join(_STRATEGIES)}, or a mapping in which name is one of them"
    return str(detail["msg"])


def _told(location: tuple[int | str, ...], message: str, node: Any, path: Path) -> str:
    line, keys = 1, []
    for part in location:
        found = _child(node, part)
        if found is None:
            # Either a key that is missing, or pydantic's name of an alternative.
            if part == location[-1]:
                keys.append(str(part))
            continue
        mark, node = found
        line = mark.line + 1
        keys.append(str(part))
    message = message.removeprefix("Value error, ")
    if message == "Extra inputs are not permitted":
        within: type[_Model] | None = CampaignConfig
        if len(location) > 1:
            within = _STRATEGIES.get(str(location[-2]))
        known = list(within.model_fields) if within is not None else []
        near = difflib.get_close_matches(keys[-1], known, n=1)
        message = "unknown key." + (f" Did you mean {near[0]}?" if near else "")
    key = ".".join(keys)
    return f"{path}, line {line}: {f'{key}: ' if key else ''}{message}"


def _child(node: Any, part: int | str) -> tuple[Any, Any] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark, node.value[part]
    return None


def make_sampler(component: Component, seed: int) -> BaseSampler:
    """Return the sampler that a file names, with a seed where it takes one.

    Raises:
        ValueError: It cannot be made.
    """
    found = component.find("optuna.samplers", kind=BaseSampler)
    options = component.options
    if "seed" in inspect.signature(found).parameters:
        options.setdefault("seed", seed)
    made = _made(found, options, component.name)
    if not isinstance(made, BaseSampler):
        raise ValueError(f"{component.name!r} is not a sampler")
    return made


def make_pruner(component: Component | None) -> BasePruner:
    """Return the pruner that a file names, by default a :class:`~lyap_optuna.LyapunovPruner`.

    Raises:
        ValueError: It cannot be made.
    """
    component = component or Component(name="LyapunovPruner")
    found = component.find("optuna.pruners", "lyap_optuna", kind=BasePruner)
    made = _made(found, component.options, component.name)
    if not isinstance(made, BasePruner):
        raise ValueError(f"{component.name!r} is not a pruner")
    return made


def _made(found: type[Any], options: dict[str, Any], name: str) -> Any:
    with warnings.catch_warnings():
        # The user chose it by its name.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return found(**options)
        except Exception as error:
            raise ValueError(f"{name} does not accept these options: {error}") from None
