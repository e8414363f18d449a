"""ΔW of the parts of a form by the packages that define it, PEFT, LyCORIS and loralib: float64, no scale."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np

from loramerge.formats.forms.table import FORMS


def _torch(arrays):
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _by_peft(layer, form, parts, config):
    """A model of this one layer, with the parts as its adapter; get_delta_weight of it."""
    import peft
    import torch

    model = torch.nn.ModuleDict({"m": layer.double()})
    made = peft.get_peft_model(model, config)
    spelled = FORMS[form].peft
    state = {f"base_model.model.m.{spelled[part][0]}": value for part, value in _torch(parts).items()}
    result = peft.set_peft_model_state_dict(made, state)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "ranknum" not in key and "base_layer" not in key]
    with torch.no_grad():
        delta = made.base_model.model["m"].get_delta_weight("default")
    return delta.numpy().reshape(delta.shape[0], -1)


def _layer(outs, ins, kernel=()):
    from torch import nn

    of = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d}[len(kernel)]
    return of(ins, outs, *([kernel] if kernel else []), bias=False)


def peft_lora(parts):
    from peft import LoraConfig

    (r, ins, *kernel), outs = parts["down"].shape, parts["up"].shape[0]
    config = LoraConfig(r=r, lora_alpha=r, target_modules=["m"])
    return _by_peft(_layer(outs, ins, tuple(kernel)), "lora", parts, config)


def peft_embedding(parts):
    from peft import LoraConfig
    from torch.nn import Embedding

    (r, tokens), dim = parts["embedding_A"].shape, parts["embedding_B"].shape[0]
    config = LoraConfig(r=r, lora_alpha=r, target_modules=["m"])
    return _by_peft(Embedding(tokens, dim), "embedding", parts, config).T


def peft_adalora(parts):
    from peft import AdaLoraConfig

    (r, ins), outs = parts["svd_A"].shape, parts["svd_B"].shape[0]
    config = AdaLoraConfig(init_r=r, lora_alpha=1, target_modules=["m"], total_step=10)
    return (r + 1e-5) * _by_peft(_layer(outs, ins), "adalora", parts, config)


def peft_loha(parts):
    from peft import LoHaConfig

    r, kernel = parts["hada_w1_b"].shape[0], parts.get("hada_t1", np.empty(0)).shape[2:]
    side = 1 if kernel else 0
    layer = _layer(parts["hada_w1_a"].shape[side], parts["hada_w1_b"].shape[1], kernel)
    config = LoHaConfig(r=r, alpha=r, target_modules=["m"], use_effective_conv2d=bool(kernel))
    return _by_peft(layer, "loha", parts, config)


def peft_lokr(parts):
    """The layer is one whose sides PEFT factorises so; it is asked for the rest by its config."""
    from peft import LoKrConfig

    r = next((parts[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts), 9)
    core = parts.get("lokr_t2", np.empty(0)).shape[2:]
    (o1, i1), (o2, i2, *kernel) = _sides(parts, bool(core))
    layer = _layer(o1 * o2, i1 * i2, tuple(core or kernel))
    both = "lokr_w1_a" in parts
    config = LoKrConfig(
        r=r, alpha=r, target_modules=["m"], use_effective_conv2d=bool(core), decompose_both=both
    )
    return _by_peft(layer, "peft_lokr", parts, config)


def _sides(parts, core):
    one = parts.get("lokr_w1")
    first = one.shape if one is not None else (parts["lokr_w1_a"].shape[0], parts["lokr_w1_b"].shape[1])
    if "lokr_w2" in parts:
        return first, parts["lokr_w2"].shape
    return first, (parts["lokr_w2_a"].shape[1 if core else 0], parts["lokr_w2_b"].shape[1])


def loralib_merged(parts):
    import loralib
    import torch

    r = parts["up"].shape[1]
    layer = loralib.MergedLinear(
        parts["down"].shape[1], 15, r=r, lora_alpha=r, enable_lora=[True, False, True]
    ).double()
    with torch.no_grad():
        layer.lora_A.copy_(_torch(parts)["down"])
        layer.lora_B.copy_(_torch(parts)["up"])
        return layer.merge_AB().numpy()


def _lycoris(form, *weights):
    from lycoris import functional

    tensors = [None if w is None else _torch({"": w})[""] for w in weights]
    delta = getattr(functional, form).diff_weight(*tensors, gamma=1.0).numpy()
    return delta.reshape(delta.shape[0], -1)


def lycoris_locon(parts):
    return _lycoris("locon", parts["down"], parts["up"], parts.get("mid"))


def lycoris_loha(parts):
    names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
    return _lycoris("loha", *map(parts.get, names))


def lycoris_lokr(parts):
    """It takes alpha, and divides by the columns of a factor: with a core, these are no rank."""
    names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    factored = next((parts[name] for name in ("lokr_w2_a", "lokr_w1_a") if name in parts), None)
    divisor = 1 if factored is None else factored.shape[1]
    return divisor * _lycoris("lokr", *map(parts.get, names))


def lycoris_full(parts):
    """The module adds its difference as it is."""
    import torch
    from lycoris.modules.full import FullModule

    outs, ins, *kernel = parts["diff"].shape
    layer = _layer(outs, ins, tuple(kernel)).double()
    module = FullModule("x", layer, multiplier=1.0).double()
    with torch.no_grad():
        module.weight.copy_(_torch(parts)["diff"])
        delta = module.get_diff_weight()[0].detach()
    return delta.numpy().reshape(outs, -1)


@contextmanager
def quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft_merged(config, size, shared=None, weight=None, bias=None, beside=None, single=False, **settings):
    """ΔW of the parts by PEFT's own `merge_and_unload`: the weight after it, less that before.

    Args:
        config: the name of its class.   size: (out, in) of the layer.   settings: for the class.
        beside: the size of a second layer, for which shared tensors are large enough.
        single: PEFT computes in float32 only.
    """

    @quietly()
    def theirs(parts):
        import peft
        import torch

        layers = {name: _linear(each, bias) for name, each in (("m", size), ("o", beside)) if each}
        if single:
            layers = {name: layer.float() for name, layer in layers.items()}
        with torch.no_grad():
            layers["m"].weight.copy_(torch.zeros(size) if weight is None else torch.from_numpy(weight))
            before = layers["m"].weight.clone()
        told = {name: value() if callable(value) else value for name, value in settings.items()}
        told.setdefault("target_modules", list(layers))
        made = peft.get_peft_model(torch.nn.ModuleDict(layers), getattr(peft, config)(**told))
        made = made.float() if single else made.double()
        state = {f"base_model.model.m.{_end(part)}": value for part, value in _torch(parts).items()}
        state |= {f"base_model.{name}": value for name, value in _torch(shared or {}).items()}
        state = {
            key: value.float() if single and value.is_floating_point() else value
            for key, value in state.items()
        }
        result = peft.set_peft_model_state_dict(made, state)
        assert not result.unexpected_keys
        with torch.no_grad():
            return (made.eval().merge_and_unload()["m"].weight - before).detach().numpy()

    return theirs


def peft_dora(form, weight):
    """PEFT's merge of a DoRA into a convolution, or into a table (tokens, dim), then transposed."""

    @quietly()
    def theirs(parts):
        import peft
        import torch

        outs, ins, *kernel = weight.shape
        layer = torch.nn.Conv2d(ins, outs, kernel, bias=False) if kernel else torch.nn.Embedding(outs, ins)
        layer = layer.double()
        layer.weight.data = torch.from_numpy(weight).double()
        before = layer.weight.detach().clone()
        config = peft.LoraConfig(r=3, lora_alpha=1.5, use_dora=True, target_modules=["m"])
        made = peft.get_peft_model(torch.nn.ModuleDict({"m": layer}), config).double()
        spelled = FORMS[form].peft
        state = {f"base_model.model.m.{spelled[part][0]}": value for part, value in _torch(parts).items()}
        assert not peft.set_peft_model_state_dict(made, state).unexpected_keys
        with torch.no_grad():
            delta = (made.merge_and_unload()["m"].weight - before).numpy()
        return delta.reshape(outs, -1) if kernel else delta.T

    return theirs


def signs(weight, right):
    """(r,) whether torch's singular vectors point as these do, 1 or -1; 1 where it is not installed."""
    if not find_spec("torch"):
        return np.ones(len(right))
    import torch

    theirs = torch.linalg.svd(torch.from_numpy(weight), full_matrices=False)[2].numpy()
    return np.sign((theirs * right).sum(axis=1))


def _linear(size, bias):
    import torch

    outs, ins = size
    layer = torch.nn.Linear(ins, outs, bias=bias is not None, dtype=torch.float64)
    if bias is not None:
        with torch.no_grad():
            layer.bias.zero_()
    return layer


def _end(part):
    return next(form.peft[part][0] for form in FORMS.values() if part in form.peft)


def lora_xs(parts):
    """LoRA-XS' forward: lora_B(latent_mapping(lora_A(x))), on unit vectors."""
    import torch

    layers = []
    for part in ("down", "latent", "up"):
        layer = torch.nn.Linear(*parts[part].shape[::-1], bias=False, dtype=torch.float64)
        layer.weight.data = _torch(parts)[part]
        layers.append(layer)
    with torch.no_grad():
        return torch.nn.Sequential(*layers)(torch.eye(parts["down"].shape[1], dtype=torch.float64)).T.numpy()


def randlora(size, a, b):
    """PEFT's layer with frames that are larger than it, as they are where other layers are larger."""

    def theirs(parts):
        import peft
        import torch

        layer = torch.nn.Linear(*size[::-1], bias=False)
        config = peft.RandLoraConfig(r=3, randlora_alpha=3, target_modules=["m"])
        made = peft.get_peft_model(torch.nn.ModuleDict({"m": layer}), config).double().base_model.model["m"]
        for name, values in (("randlora_A", a), ("randlora_B", b)):
            getattr(made, name)["default"] = torch.from_numpy(values)
        for name, values in _torch(parts).items():
            getattr(made, name)["default"].data = values
        with torch.no_grad():
            return made.get_delta_weight("default").numpy()

    return theirs


def kasa(weight):
    """PEFT cuts the base when the adapter is added; the weight before that is subtracted."""
    return peft_merged(
        "LoraConfig", weight.shape, weight=weight, r=3, lora_alpha=1.5, kasa_config=lambda: _kasa_config()
    )


def _kasa_config():
    import peft

    return peft.tuners.lora.KasaConfig()


def boft(weight, steps):
    """PEFT's layer; on a CPU it knows one step, so that several go by its permutations and transforms."""

    @quietly()
    def theirs(parts):
        import peft
        import torch

        outs, ins = weight.shape
        config = peft.BOFTConfig(boft_block_size=4, target_modules=["m"])
        model = torch.nn.ModuleDict({"m": torch.nn.Linear(ins, outs, bias=False)})
        layer = peft.get_peft_model(model, config).double().base_model.model["m"]
        turns, stretch, before = (
            torch.from_numpy(a).double() for a in (parts["boft_R"], parts["boft_s"], weight)
        )
        with torch.no_grad():
            whole = torch.eye(ins, dtype=torch.float64)
            for step, turn in enumerate(turns):
                blocks = len(turn) // 2**step
                order = layer.perm2mat(layer.block_butterfly_perm(ins, blocks, 2, steps - 1)).double()
                whole = order @ torch.block_diag(*layer.cayley_batch(turn)) @ order.T @ whole
            return ((whole @ before.T).T * stretch - before).numpy()

    return theirs


def lofit(weight):
    """LoFiT's forward on unit vectors: z → z + A ∘ z + v in a head, and then the projection."""

    def theirs(parts):
        outputs = []
        for z in np.vstack([np.zeros(weight.shape[1]), np.eye(weight.shape[1])]):
            changed = z.copy()
            for head in (1, 3):
                here = slice(4 * head, 4 * head + 4)
                changed[here] = (1 + parts[f"lofit_A.{head}"]) * z[here] + parts[f"lofit_v.{head}"]
            outputs.append(weight.astype("f8") @ changed)
        return (np.array(outputs[1:]) - outputs[0]).T - weight

    return theirs


def triadapt(parts):
    """TriAdaptLoRA's own product: lists filled up with zeros, concatenated, and divided by the rank."""
    import torch

    tensors = _torch(parts)
    a, b, rows, columns = ([tensors[f"tri_{side}.{i}"] for i in (0, 1)] for side in ("A", "B", "row", "col"))
    rank, pad = rows[-1].size(1), torch.nn.functional.pad
    lower = torch.cat([pad(row, (0, rank - row.size(1))) for row in rows], dim=0)
    upper = torch.cat([pad(column, (0, 0, 0, rank - column.size(0))) for column in columns], dim=1)
    delta = torch.cat(b, 1) @ ((lower + upper) @ torch.cat(a, 0)) * 6 / (rank + 1e-5)
    return delta.numpy()
