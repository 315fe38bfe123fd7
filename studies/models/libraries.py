"""Models with layers of other libraries; the truth is each layer's own step.

The steps stand with the tests of these layers, in ``tests/libraries/_steps.py``. A package is
imported only where its case is used.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lyap_optuna.dynamics import find_layers
from studies.models.cases import Case, Truths, draw
from studies.models.truth import Diagonal, Truth

FEATURES = 4
STEPS = Path(__file__).parents[2] / "tests" / "libraries"


class Around(nn.Module):
    """A model around one layer.

    Args:
        layer: The layer.
        units: Its units.
        scale: How far its weights are spread: some begin at zero.
    """

    def __init__(self, layer: nn.Module, units: int, scale: float = 0.3) -> None:
        super().__init__()
        self.layer: Any = layer
        self.units = units
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in layer.parameters():
                if p.requires_grad and p.is_floating_point():
                    p.add_(scale * torch.randn(p.shape, generator=generator).to(p))

    def forward(self, *args: Any) -> Any:
        """Return what the layer returns."""
        return self.layer(*args)


class ComplexAround(Around):
    """Around a layer whose complex numbers do not follow ``double()``."""

    def double(self) -> Any:
        """Convert them too."""
        super().double()
        for module in self.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.is_complex():
                    setattr(module, name, nn.Parameter(p.detach().to(torch.complex128)))
        if isinstance(getattr(self.layer, "state", None), Tensor):
            self.layer.state = self.layer.state.to(torch.complex128)
        return self


# Truth -------------------------------------------------------------------------------------------


def reaching(model: nn.Module, inputs: Any) -> dict[str, tuple[nn.Module, Any, Any]]:
    """Return each recurrent layer that a model calls, with what it is called with, by name."""
    calls: dict[str, tuple[nn.Module, Any, Any]] = {}
    handles = []
    for name, layer in find_layers(model).items():

        def record(layer: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            calls[name] = layer, args, kwargs

        handles.append(layer.register_forward_pre_hook(record, with_kwargs=True))
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return calls


@contextlib.contextmanager
def double_by_default() -> Iterator[None]:
    """Make tensors float64: some layers make their outputs in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _by_steps(diagonal: bool, empty: int, time_first: bool) -> Callable[[Any, Any], Truths]:
    def truth(model: Any, inputs: Any) -> Truths:
        if str(STEPS) not in sys.path:
            sys.path.append(str(STEPS))
        steps_of = importlib.import_module("_steps").steps_of
        time, batch = inputs.shape[:2] if time_first else inputs.shape[1::-1]
        rows, times = torch.arange(batch), torch.arange(time)
        numbers = torch.stack(torch.meshgrid(rows, times, indexing="ij"), 2)
        truths: Truths = {}
        for name, call in reaching(model, inputs).items():
            with double_by_default():
                steps, initial = zip(*(steps_of(*call, b) for b in range(batch)), strict=True)

            def step(s: Tensor, at: Tensor, steps: Any = steps) -> Tensor:
                with double_by_default():
                    new: Tensor = steps[int(at[0])](s, int(at[1]))
                return new

            begun = torch.stack(initial).detach()
            truths[name] = (
                Diagonal(step, begun, numbers)
                if diagonal
                else Truth(step, begun, numbers, empty=empty)
            )
        return truths

    return truth


# Models ------------------------------------------------------------------------------------------


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _language_model(name: str, heads: int = 0, **options: Any) -> Callable[[int], nn.Module]:
    def make(units: int) -> nn.Module:
        library = _module("transformers")
        if heads:
            options.update(num_heads=heads, head_dim=2 * units // heads)
        config = getattr(library, f"{name}Config")(
            vocab_size=20, hidden_size=units, num_hidden_layers=2, **options
        )
        model: nn.Module = getattr(library, f"{name}ForCausalLM")(config)
        return model

    return make


def _mambapy(units: int) -> nn.Module:
    library = _module("mambapy.mamba")
    config = library.MambaConfig(d_model=units, n_layers=1, d_state=3, pscan=False)
    return Around(library.MambaBlock(config), units)


def _min_gru(units: int) -> nn.Module:
    return Around(_module("minGRU_pytorch").minGRU(units), units)


def _s5(units: int) -> nn.Module:
    return ComplexAround(_module("s5").S5(FEATURES, units), units, scale=0)


def _lru(units: int) -> nn.Module:
    return ComplexAround(_module("LRU_pytorch").LRU(FEATURES, 3, units), units, scale=0)


def _recurrent(name: str) -> Callable[[int], nn.Module]:
    return lambda units: Around(getattr(_module("torchrecurrent"), name)(units, units), units)


def _ncps(name: str, scale: float) -> Callable[[int], nn.Module]:
    def make(units: int) -> nn.Module:
        return Around(getattr(_module("ncps.torch"), name)(FEATURES, units), units, scale)

    return make


def _slstm(units: int) -> nn.Module:
    layers = _module("xlstm.blocks.slstm.layer")
    config = layers.sLSTMLayerConfig(
        embedding_dim=units, num_heads=2, backend="vanilla", conv1d_kernel_size=4, dtype="float32"
    )
    return Around(layers.sLSTMLayer(config), units)


def _mlstm(units: int) -> nn.Module:
    layers = _module("xlstm.blocks.mlstm.layer")
    config = layers.mLSTMLayerConfig(embedding_dim=units, num_heads=8, context_length=128)
    return Around(layers.mLSTMLayer(config), units)


# The list ----------------------------------------------------------------------------------------


def _features(model: Any, batch: int, steps: int) -> Tensor:
    return draw(batch, steps, FEATURES)


def _units(model: Any, batch: int, steps: int) -> Tensor:
    return draw(batch, steps, model.units)


def _time_first(model: Any, batch: int, steps: int) -> Tensor:
    return draw(steps, batch, model.units)


def _tokens(model: Any, batch: int, steps: int) -> Tensor:
    return torch.randint(0, 20, (batch, steps), generator=torch.Generator().manual_seed(0))


def _case(
    library: str,
    name: str,
    make: Callable[[int], nn.Module],
    inputs: Callable[[Any, int, int], Tensor],
    *,
    module: str = "",
    diagonal: bool = False,
    empty: int = 0,
) -> Case:
    def seeded(units: int) -> nn.Module:
        torch.manual_seed(0)
        return make(units)

    return Case(
        f"{library}: `{name}`",
        seeded,
        inputs,
        _by_steps(diagonal, empty, inputs is _time_first),
        "LyapunovProbe(model, tokens)" if inputs is _tokens else "LyapunovProbe(model, x)",
        library=library,
        module=module or library,
    )


_mamba = _language_model("Mamba", state_size=3)
_mamba2 = _language_model("Mamba2", heads=2, state_size=3, n_groups=1, chunk_size=8)
_rwkv = _language_model("Rwkv", context_length=128, rescale_every=0)

LIBRARIES: dict[str, list[Case]] = {
    "Layers of other libraries": [
        _case("transformers", "MambaForCausalLM", _mamba, _tokens, diagonal=True),
        _case("transformers", "Mamba2ForCausalLM", _mamba2, _tokens, diagonal=True),
        _case("transformers", "RwkvForCausalLM", _rwkv, _tokens, empty=1),
        _case("mambapy", "MambaBlock", _mambapy, _units, diagonal=True),
        _case("minGRU-pytorch", "minGRU", _min_gru, _units, module="minGRU_pytorch", diagonal=True),
        _case("s5-pytorch", "S5", _s5, _features, module="s5"),
        _case("LRU-pytorch", "LRU", _lru, _features, module="LRU_pytorch"),
        *(
            _case("torchrecurrent", name, _recurrent(name), _time_first)
            for name in ("IndRNN", "PeepholeLSTM", "UGRNN", "coRNN", "LEM")
        ),
        _case("ncps", "CfC", _ncps("CfC", 0.3), _features),
        _case("ncps", "LTC", _ncps("LTC", 0.02), _features),
        _case("xlstm", "sLSTMLayer", _slstm, _units, empty=1),
        _case("xlstm", "mLSTMLayer", _mlstm, _units, diagonal=True),
    ]
}
