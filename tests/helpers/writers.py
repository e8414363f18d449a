"""Everything that loramerge writes, on small inputs: name -> (how, where). A new writer must be among them.

Each is given OUT and 0 or 1, for two results that differ, and replaces what is there.
"""

import ast
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import loramerge as lm
from loramerge.formats.files import atomic
from tests.helpers.files import bare, folder, tensors
from tests.helpers.models import random_model, save_model

PACKAGE = Path(lm.__file__).parent
Q = "model.layers.0.self_attn.q_proj"
MORE = {"overwrite": True, "threads": 1}


def make_inputs(place):
    """Adapters, models and what was merged of them, for all writers."""
    for seed, name in enumerate("ab"):
        folder(place / name, tensors(seed))
    rng, shapes = np.random.default_rng(5), {"q_proj": (6, 8), "v_proj": (4, 8)}
    for name in ("ia1", "ia2"):
        scales = {
            f"base_model.model.{path}.ia3_l": rng.random((outs, 1)) for path, (outs, _) in shapes.items()
        }
        scales = {path: value.astype(np.float32) for path, value in scales.items()}
        folder(place / name, scales, config={"peft_type": "IA3", "feedforward_modules": [],
               "target_modules": [*shapes], "base_model_name_or_path": "tiny"})  # fmt: skip
    _nola(place, rng)
    save_model(
        place / "ibase", {f"{path}.weight": rng.standard_normal(size) for path, size in shapes.items()}
    )
    base = random_model(0)
    moved = np.outer(np.arange(16.0), np.ones(16)).astype(np.float32)
    tuned = {**base, f"{Q}.weight": base[f"{Q}.weight"] + moved}
    for name, values, shards in (("base", base, 1), ("base.safetensors", base, 1), ("tuned", tuned, 1),
                                 ("sharded", base, 2)):  # fmt: skip
        save_model(place / name, values, shards=shards)
    folder(place / "tiny", tensors(2, shapes={Q: (16, 16)}))
    lm.combine(["a", "b"], "mergevla", rank=1, out=place / "masks", threads=1)
    lm.combine(["a", "b"], "svd", rank=2, out=place / "record", threads=1)
    for name in "ab":
        lm.convert(name, place / f"{name}.safetensors", dtype="float64")


def _nola(place, rng):
    """Two files of NOLA of one draw, and their base."""
    from loramerge.formats.dialects.nola import SEED, SLOPE
    from loramerge.formats.forms.draws import Draws, bound

    sizes = {"blocks.0.mlp.fc1.weight": (20, 8), "blocks.0.mlp.fc2.weight": (8, 20)}
    save_model(place / "nbase", {path: rng.standard_normal(size) for path, size in sizes.items()})
    names = [f"{which}_{what}_000" for which in ("fc1", "fc2") for what in ("alpha", "beta")]
    same = {name: rng.standard_normal(5).astype(np.float32) for name in names}
    drawn = Draws(SEED).uniform((8, 2), bound(16, SLOPE))[:, 0].copy()
    for name in ("n1", "n2"):
        own = {key: rng.standard_normal(5).astype(np.float32) for key in same if "alpha" in key}
        bare(place / f"{name}.safetensors", {**same, **own, "fc1_A_000": drawn})


def merged(out, new):
    lm.combine(["a", "b"][: 1 + new], "svd", rank=1, out=out, **MORE)


def masked(out, new):
    lm.combine(["a", "b"][: 1 + new], "mergevla", rank=1, out=out, **MORE)


def saved(out, new):
    lm.combine(["a", "b"], "svd", rank=1 + new, threads=1).save(out, overwrite=True)


def kept(out, new):
    pair, base = (["n1.safetensors", "n2.safetensors"], "nbase") if out.suffix else (["ia1", "ia2"], "ibase")
    lm.combine(pair, weights=(0.5, 0.5 + new), base=base, keep_form=True, out=out, **MORE)


def fused(base):
    return lambda out, new: lm.fuse("tiny", base, out, scale=1.0 + new, **MORE)


def extracted(out, new):
    lm.extract("tuned", "base", out, rank=1 + new, **MORE)


def resized(out, new):
    lm.resize("a", rank=1 + new, out=out, overwrite=True)


def converted(out, new):
    lm.convert("ab"[new], out, dtype="bfloat16", overwrite=True)


def copied(suffix=""):
    return lambda out, new: lm.convert("ab"[new] + suffix, out, overwrite=True)


def restored(out, new):
    lm.restore("masks", "ab"[new], out, rank=1, **MORE)


def replayed(out, new):
    lm.replay(["record", "masks"][new], out, **MORE)


def dense(out, new):
    lm.write_deltas(lm.plan(["a", "b"], "svd", rank=1 + new, threads=1), out, overwrite=True)


def spread(out, new):
    lm.combine(["a", "b"], lm.Average(), weights=[1 + new, 1], threads=1).save_spread(out, overwrite=True)


def routed(out, new):
    lm.route(["a", "b"][: 1 + new], out=out, **MORE)


def page(out, new):
    from loramerge.pages.page import Page
    from loramerge.pages.section import How, Section

    Page("ab"[new], (Section("one", "One", "No chart.", How("", "")),)).save(out, overwrite=True)


WRITERS: dict[str, tuple[Callable, str]] = {
    "a folder": (merged, "m"),
    "a file": (merged, "m.safetensors"),
    "a folder with masks": (masked, "m"),
    "a merge that is saved": (saved, "m"),
    "a form that is kept": (kept, "m"),
    "a form that is kept in a file": (kept, "m.safetensors"),
    "a smaller adapter": (resized, "m"),
    "another format": (converted, "m.safetensors"),
    "a copied folder": (copied(), "m"),
    "a copied file": (copied(".safetensors"), "m.safetensors"),
    "a task of a merge": (restored, "m"),
    "a merge that is repeated": (replayed, "m"),
    "dense deltas": (dense, "m.safetensors"),
    "the spread of a mixture": (spread, "m.safetensors"),
    "a bundle": (routed, "m"),
    "a page": (page, "m.html"),
    "a fused model": (fused("base"), "m"),
    "a fused model of two shards": (fused("sharded"), "m"),
    "a fused model in a file": (fused("base.safetensors"), "m.safetensors"),
    "an extracted adapter": (extracted, "m"),
    "an extracted adapter in a file": (extracted, "m.safetensors"),
}


def places():
    """(file of the package, what it makes) wherever the code asks for an output."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        names = {n.id for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Name)}
        found |= {(str(path.relative_to(PACKAGE)), each) for each in names & {"new_file", "new_folder"}}
    return found


@contextmanager
def noting(seen):
    """Note which of these places is taken within."""
    real = atomic._work

    def work(out, overwrite, folder, *rest, **named):
        frame = sys._getframe()
        while not _ours(frame.f_code.co_filename):
            frame = frame.f_back
        file = os.path.relpath(frame.f_code.co_filename, PACKAGE)
        seen.add((file, "new_folder" if folder else "new_file"))
        return real(out, overwrite, folder, *rest, **named)

    atomic._work = work
    try:
        yield
    finally:
        atomic._work = real


def _ours(path):
    return path.startswith(f"{PACKAGE}{os.sep}") and path != atomic.__file__


CHANGE = {"write_text", "write_bytes", "unlink", "rmtree", "mkdir", "makedirs", "mkstemp", "rmdir", "mkdtemp",
          "touch", "symlink_to", "hardlink_to", "copyfile", "copy2", "copytree", "savez", "save_file",
          "fsync", "NamedTemporaryFile", "TemporaryDirectory", "ftruncate"}  # fmt: skip
OF_OS = {"replace", "rename", "renames", "remove", "link", "symlink", "truncate", "move"}


def hands():
    """The files of the package that change the disk by their own hands."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        if any(isinstance(node, ast.Call) and _changes(node) for node in ast.walk(tree)):
            found.add(str(path.relative_to(PACKAGE)))
    return found


def _changes(call):
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name == "open":  # its mode, or the flags of os.open
        modes = [n.value for n in ast.walk(call) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        return "O_CREAT" in ast.unparse(call) or any(
            set(m) <= set("rwxabt+") and set(m) & set("wxa+") for m in modes
        )
    return name in CHANGE or (owner in ("os", "shutil") and name in OF_OS)
