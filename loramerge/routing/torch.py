"""Bundles in torch: `attach` adds one to a model while a block runs; `put_prototypes` mends PEFT's Arrow.

The only file of this room that knows torch, which is loaded when it is called for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loramerge.adapters.target import Target
from loramerge.arrays.backend import to_torch
from loramerge.arrays.dtypes import wide
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.routing.bank import Bank
from loramerge.routing.bundle import Bundle, moved
from loramerge.routing.gates.arrow import Arrow
from loramerge.routing.gates.gate import Gate, Seen
from loramerge.routing.gates.names import name_of
from loramerge.routing.inputs import Rows, check_names, check_prompt, rows_of


class Torch:
    """The functions of gates, of tensors."""

    def __init__(self) -> None:
        import torch

        self.exp, self.tanh, self.erf, self._torch = torch.exp, torch.tanh, torch.erf, torch

    def where(self, mask: Any, x: Any, other: float) -> Any:
        return self._torch.where(mask, x, other)

    def largest(self, x: Any) -> Any:
        return x.amax(-1, keepdim=True)

    def total(self, x: Any) -> Any:
        return x.sum(-1, keepdim=True)

    def repeated(self, owner: Any, part: int) -> Any:
        return self._torch.arange(len(owner), device=owner.device) // part

    def top(self, x: Any, k: int) -> Any:
        none = self._torch.zeros_like(x, dtype=self._torch.bool)
        return ~none if k >= x.shape[-1] else none.scatter_(-1, x.topk(k).indices, True)


@contextmanager
def attach(model: Any, bundle: Bundle, rows: Rows = None, prompt: Any = None) -> Iterator[Attached]:
    """Add a bundle to the layers of a model while the block runs; afterwards the model is as before.

    Args:
        model: of transformers or diffusers, or any module of torch; its layers are found by their names.
            They may be stored the other way round, as Conv1D of GPT-2 is. In a convolution over one or two
            dimensions every place is a token: what lies under the kernel there.
        rows: for the gates table and task: one row for all requests, or one for each of a batch.
        prompt: (p, m) hidden states of the prompt, for the gate outchan.

    Yields:
        Attached: set its `rows` for other requests; its `tensors` are those of the routers, to be trained.

    Raises:
        IncompatibleError: the model lacks a layer of the bundle, has it in another shape, or as one that a
            gate cannot weigh: an embedding, a convolution with groups, over three dimensions, or transposed.
        UsageError: there is no such row, or no prompt where the gate goes by it.

    Example (tests/routing/test_torch.py runs it on tiny models)::

        with attach(model, lm.load_bundle("bundle")):
            model.generate(**inputs)
    """
    _check_given(model, bundle)
    for gate in {id(g): g for g in (bundle.gate, *bundle.gates.values())}.values():
        check_prompt(gate, None if prompt is None else np.shape(prompt))
        if rows is not None:
            check_names(gate, rows)
    modules, attached = _modules(model, bundle), Attached(bundle, rows, prompt)
    for target, layer in modules.items():
        attached.place(target, layer)
    hooks = [
        layer.register_forward_hook(attached.hook(target), with_kwargs=True)
        for target, layer in modules.items()
    ]
    try:
        yield attached
    finally:
        for hook in hooks:
            hook.remove()


class Attached:
    """A bundle that hangs on a model.

    Args:
        rows, prompt: as for `attach`; they may be set anew for every request.

    Attributes:
        tensors: module -> name -> tensor of its router. With `requires_grad_()` they can be trained.
    """

    def __init__(self, bundle: Bundle, rows: Rows = None, prompt: Any = None) -> None:
        self.bundle, self.rows, self.prompt = bundle, rows, prompt
        self._parts = {target: _Part.of(bundle.gate_of(target), bundle.read(target)) for target in bundle}
        self.tensors = {str(target): part.tensors for target, part in self._parts.items()}

    def place(self, target: Target, layer: Any) -> None:
        """Put the units of a module where its layer is, and in its type, if that is a float."""
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.is_floating_point():
            self._parts[target].move(weight)

    def hook(self, target: Target) -> Callable[..., Any]:
        """What is called after a layer: its output with what the bundle adds."""
        part = self._parts[target]

        def add(layer: Any, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
            x = inputs[0] if inputs else next(iter(named.values()))
            if not hasattr(layer, "kernel_size"):
                return output + part(x, self.rows, self.prompt).to(output.dtype)
            found = part(_patches(layer, x), self.rows, self.prompt).transpose(1, 2)
            return output + found.reshape(output.shape).to(output.dtype)

        return add

    def trained(self) -> Bundle:
        """The bundle with the routers as they are now."""
        found = {t: {n: _numpy(each) for n, each in part.tensors.items()} for t, part in self._parts.items()}
        before = self.bundle.read

        def read(target: Target) -> Bank:
            return replace(before(target), tensors=found[target])

        return replace(self.bundle, read=read)


@dataclass(eq=False)
class _Part:
    """One module: its gate, and its units as tensors, where and in the type of what came last."""

    gate: Gate
    bank: Bank
    up: Any  # (R, out)
    down: Any  # (R, in)
    owner: Any
    members: Any
    tensors: dict[str, Any]
    maths: Torch

    @classmethod
    def of(cls, gate: Gate, bank: Bank) -> _Part:

        def tensor(array: Any) -> Any:
            return to_torch(np.ascontiguousarray(wide(array), np.float32))

        layout = bank.layout
        tensors = {name: tensor(array) for name, array in bank.tensors.items()}
        owner = to_torch(layout.owner)
        up, down = tensor(bank.up.T), tensor(bank.down)
        return cls(gate, bank, up, down, owner, tensor(layout.members), tensors, Torch())

    def __call__(self, x: Any, rows: Rows, prompt: Any) -> Any:
        self.move(x)
        tokens = x.reshape(-1, x.shape[-1])
        tensors = {name: each.to(x.device, x.dtype) for name, each in self.tensors.items()}
        named = rows_of(self.gate, rows, len(x), len(tokens))
        seen = Seen(
            tokens, tokens @ self.down.T, self.owner, self.members, tensors, self.bank.layout, self.maths,
            None if named is None else tokens.new_tensor(named),
            self._prompt(prompt, x),
        )  # fmt: skip
        return moved(self.gate, seen, self.up).reshape(*x.shape[:-1], self.up.shape[1])

    def _prompt(self, prompt: Any, x: Any) -> Any:
        """Where a tensor is and in its type; None where the gate does not go by it."""
        check_prompt(self.gate, None if prompt is None else np.shape(prompt))
        if self.gate.asks != "prompt":
            return None
        return (prompt if hasattr(prompt, "to") else to_torch(np.asarray(prompt))).to(x.device, x.dtype)

    def move(self, x: Any) -> None:
        """Have the units where a tensor is, and in its type."""
        if self.down.device != x.device or self.down.dtype != x.dtype:
            self.up, self.down, self.members = (
                each.to(x.device, x.dtype) for each in (self.up, self.down, self.members)
            )
            self.owner = self.owner.to(x.device)


def put_prototypes(model: Any, bundle: Bundle) -> None:
    """Put the exact prototypes of a bundle into the Arrow layers that PEFT has made of its folders.

    Raises:
        UsageError: the gate of the bundle is another.   IncompatibleError: the model has no such layers.
    """
    _check_given(model, bundle)
    if not isinstance(bundle.gate, Arrow) or bundle.gates:
        raise UsageError(f"The gate of this bundle is {name_of(bundle.gate)}, and only arrow has prototypes.")

    for target, layer in _modules(model, bundle).items():
        routers = getattr(layer, "lora_arrow", None)
        if not routers:
            raise IncompatibleError(
                f"{printable(target)} of the model has no Arrow router: make it by create_arrow_model, of "
                "the folders of this bundle."
            )
        exact = to_torch(np.asarray(bundle.read(target).tensors["prototypes"]))
        for router in routers.values():
            weight = layer.lora_A[router.task_adapter_names[0]].weight
            router.register_buffer("prototypes", exact.to(weight.device, weight.dtype), persistent=False)
            router._protos_ready = True


def _modules(model: Any, bundle: Bundle) -> dict[Target, Any]:
    """The layer of the model for each module of the bundle."""
    named = {name: layer for name, layer in model.named_modules() if name}
    ends: dict[str, list[str]] = {}
    for name in named:
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    return {target: _found(target, named, ends, bundle) for target in bundle}


def _found(
    target: Target, named: Mapping[str, Any], ends: Mapping[str, Sequence[str]], bundle: Bundle
) -> Any:
    path = target.path
    near = [n for n in ends.get(path.rpartition(".")[2], ()) if _same(n, path)]
    if path not in named and len(near) != 1:
        how = "no layer" if not near else f"{len(near)} layers"
        raise IncompatibleError(
            f"The model has {how} called {printable(path)}, which the bundle adapts: it is for another model."
        )
    layer = named[path if path in named else near[0]]
    if why := _unfit(layer, target):
        raise IncompatibleError(
            f"{printable(path)} is {why}: make the bundle without it, with {say('exclude', path)} of route."
        )
    if (sizes := _sizes(layer)) and sizes != bundle.layouts[target].shape:
        outs, ins = bundle.layouts[target].shape
        raise IncompatibleError(
            f"{printable(path)} is {sizes[0]}×{sizes[1]} in the model and {outs}×{ins} in the bundle: it is "
            "for another model."
        )
    return layer


def _unfit(layer: Any, target: Target) -> str:
    """Why a gate cannot weigh the inputs of a layer; "" if it can."""
    if hasattr(layer, "num_embeddings"):
        return "an embedding in the model, whose inputs are names of tokens that no gate can weigh"
    kernel = tuple(getattr(layer, "kernel_size", ()))
    if not kernel:
        return "a convolution in the bundle and none in the model" if set(target.layout.kernel) - {1} else ""
    if layer.transposed or layer.groups != 1:
        return (
            f"a {'transposed' if layer.transposed else 'grouped'} convolution in the model, which is not read"
        )
    if len(kernel) > 2:
        return "a convolution over three dimensions in the model, and two are the most here"
    if (target.layout.kernel or (1,) * len(kernel)) != kernel:
        return f"a convolution of {_times(kernel)} in the model and of {_times(target.layout.kernel)} here"
    return ""


def _times(kernel: Sequence[int]) -> str:
    return "×".join(map(str, kernel)) or "1"


def _patches(layer: Any, x: Any) -> Any:
    """(n, places, in · Π kernel) what lies under the kernel of a convolution at each place of its output."""
    from torch.nn.functional import pad, unfold

    kernel, dilation = tuple(layer.kernel_size), tuple(layer.dilation)
    x = x if x.dim() == len(kernel) + 2 else x[None]
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if isinstance(layer.padding, str):
        sides = [(n // 2, n - n // 2) if layer.padding == "same" else (0, 0) for n in spans]
    else:
        sides = [(n, n) for n in layer.padding]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = pad(x, [n for side in reversed(sides) for n in side], mode=mode)
    more = 2 - len(kernel)  # one dimension is two, of which the second has one place
    x = x.reshape(*x.shape, *(1,) * more)
    ones = (1,) * more
    return unfold(x, kernel + ones, dilation + ones, 0, tuple(layer.stride) + ones).transpose(1, 2)


def _check_given(model: Any, bundle: Any) -> None:
    """Raises UsageError: these are no model and no bundle."""
    if not hasattr(model, "named_modules"):
        raise UsageError(f"model={printable(repr(model), 60)} must be a module of torch.")
    if not isinstance(bundle, Bundle):
        raise UsageError(
            f"bundle={printable(repr(bundle), 60)} must be a bundle: loramerge.load_bundle reads one."
        )


def _same(name: str, path: str) -> bool:
    """Whether one is the other with something before it."""
    return name.endswith(f".{path}") or path.endswith(f".{name}")


def _sizes(layer: Any) -> tuple[int, int] | None:
    """(out, in) of a layer, if it says that; of a convolution (out, in · Π kernel)."""
    if hasattr(layer, "kernel_size"):
        return int(layer.out_channels), int(layer.in_channels * np.prod(layer.kernel_size))
    if hasattr(layer, "out_features"):
        return int(layer.out_features), int(layer.in_features)
    return (int(layer.nf), int(layer.nx)) if hasattr(layer, "nf") else None


def _numpy(tensor: Any) -> Any:
    return tensor.detach().cpu().float().numpy()
