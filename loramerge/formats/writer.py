"""One adapter written in a dialect: its own, or another with the same ΔW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from loramerge.adapters.adapter import Adapter
from loramerge.adapters.arguments import checked
from loramerge.adapters.original import noted, open_original
from loramerge.adapters.target import Target
from loramerge.arrays import dtypes, rounding
from loramerge.arrays.backend import Array
from loramerge.errors import IncompatibleError, UsageError, printable, say
from loramerge.formats import output
from loramerge.formats.dialects import FORMATS, Dialect, named
from loramerge.formats.dialects.dialect import check_place
from loramerge.formats.dialects.model import VARIANT
from loramerge.formats.extras import settle
from loramerge.formats.files.atomic import new_file, new_folder
from loramerge.formats.files.destination import a_path, check_apart
from loramerge.formats.files.safetensors import File, Writer
from loramerge.formats.files.views import pieces
from loramerge.formats.peft import portable
from loramerge.formats.peft.beside import told
from loramerge.formats.peft.profiles import Profile, arranged, patterns
from loramerge.formats.peft.read import open_weights
from loramerge.formats.reader import load_path
from loramerge.formats.training import UNKNOWN, trained

Check = Callable[[Adapter], None]

KEPT = (  # header metadata that says something of the base model, and stays true of a merge
    VARIANT,
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_v2",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
    "modelspec.sai_model_spec",
)


def written(adapters: Sequence[Adapter], format: str | None) -> Dialect:
    """The dialect in which a merge of these adapters is written: the one asked for, else their own.

    Raises:
        UsageError: no such format, or they are of several and none is asked for.
    """
    if format is not None:
        from loramerge.formats.tools import SPELLINGS, TOOLS  # few merges name a format

        if tool := TOOLS.get(format) or SPELLINGS.get(format):
            return tool.dialect(adapters)
        if format not in FORMATS:
            some = ", ".join((*FORMATS, *TOOLS))
            raise UsageError(f"There is no format {printable(repr(format), 60)}: there are {some}.")
        return named(format).bound(adapters)
    found = {adapter.dialect: adapter for adapter in adapters}
    if len(found) > 1:
        shown = ", ".join(f"{printable(a.name)} is {named(a.dialect).words}" for a in found.values())
        raise UsageError(
            f"The sources have several formats ({shown}): say with {say('format')} which one to write."
        )
    dialect = named(next(iter(found)))
    if not dialect.writes:
        raise UsageError(
            f"{dialect.words[0].upper()}{dialect.words[1:]} can be read but not written: say with "
            f"{say('format')} which of {', '.join(FORMATS)} to write."
        )
    return dialect.bound(adapters)


def shared_metadata(adapters: Sequence[Adapter], dialect: Dialect) -> dict[str, str]:
    """What the headers say of the training, and of the base model where those that say it agree."""
    found = trained(adapters)
    if dialect.hashed and any(UNKNOWN.keys() & adapter.metadata.keys() for adapter in adapters):
        found |= UNKNOWN
    for key in (*KEPT, *dialect.kept):
        said = {adapter.metadata[key] for adapter in adapters if key in adapter.metadata}
        if len(said) == 1:
            found[key] = said.pop()
    return found


def check_beside(adapters: Sequence[Adapter], dialect: Dialect, keys: Sequence[str]) -> None:
    """Refuse tensors beside the pairs that have no name in the dialect.

    Raises:
        IncompatibleError: there is such a tensor.
    """
    foreign = [a for a in adapters if a.dialect != dialect.name and (a.extras or a.biases)]
    if foreign and keys:
        raise IncompatibleError(
            f"{printable(foreign[0].name)} holds tensors that are not low-rank pairs ({told(keys)}), and "
            f"these have no place in {dialect.words}: leave them out with {say('extras', 'drop')}."
        )


@checked("format", "dtype", "extras", "overwrite")
def save(
    adapter: Adapter,
    out: str | Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    extras: str = "first",
    overwrite: bool = False,
) -> None:
    """Write an adapter: a folder, or one file if `out` ends in .safetensors.

    Args:
        format: ``peft``, ``kohya``, …; by default the adapter's own.
        extras: other tensors, such as heads: ``"first"`` keeps them, ``"drop"`` leaves them out.

    Where the format has an alpha for each module, factors stay as they are and the scale is its alpha;
    elsewhere scales are folded into ``up`` in float64, rounded once, and all modules get one rank.

    Raises:
        UsageError: no such format, or not for such an `out`.
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
        IncompatibleError: a value does not fit the dtype, or a module has no name in the format.

    >>> import tempfile
    >>> from loramerge import load
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(load("fixtures/b.safetensors"), f"{folder}/b", dtype="bfloat16")
    ...     load(f"{folder}/b").dtype
    'BF16'
    """
    if not isinstance(adapter, Adapter):
        what = "the `adapter` of a merge" if hasattr(adapter, "adapter") else "lm.load(path)"
        raise UsageError(f"save writes an Adapter, not a {type(adapter).__name__}: give {what}.")
    dialect, path = written([adapter], format), a_path(out, "out")
    whole = dialect.adopt(adapter)
    kind = whole.dtype if dtype is None else dtypes.parse(dtype)
    write(whole, outlined(whole, dialect, kind, extras), path, overwrite)


def write(
    whole: Adapter, outline: output.Outline, out: Path, overwrite: bool, check: Check | None = None
) -> None:
    """Write an adapter; `check` sees what was read back, before `out` appears."""
    confirm = whole.provenance.confirm
    check_apart(out, [whole])
    with output.create(out, output.is_bare(out), outline, overwrite, confirm) as draft:
        for target in whole:
            draft.put(target, *_stored(whole, target, outline))
        draft.close()
        if check is not None:
            check(draft.reread())


def outlined(
    whole: Adapter, dialect: Dialect, kind: str, extras: str, profile: Profile = "portable"
) -> output.Outline:
    """What must be known before an adapter is written in a dialect."""
    units = {target: slot.rank for target, slot in whole.slots.items()}
    profile = "compact" if dialect.keeps_alpha else profile
    rank, own = arranged(profile, units)
    shapes = {target: slot.shape for target, slot in whole.slots.items()}
    kept = settle([whole], [1.0], extras, shapes)
    check_beside([whole], dialect, list(kept.tensors))
    ranks = {name: patterns(own) for name in ("rank_pattern", "alpha_pattern")}
    config = {**portable.config([whole], shapes, rank), **ranks, **kept.config}
    scales = {t: slot.scale for t, slot in whole.slots.items()} if dialect.keeps_alpha else {}
    return output.Outline(
        shapes,
        rank,
        kind,
        config,
        extras=kept.tensors,
        ranks=own,
        profile=profile,
        dialect=dialect,
        kept=shared_metadata([whole], dialect),
        scales=scales,
    )


def _stored(whole: Adapter, target: Target, outline: output.Outline) -> tuple[Array, Array]:
    """The factors of a module as they are written."""
    update, width = whole[target], outline.width(target)
    scale = 1.0 if target in outline.scales else update.scale
    same = all(dtypes.name_of(f.dtype) == outline.dtype for f in (update.up, update.down))
    if scale == 1.0 and same and update.rank == width:
        return update.up, update.down
    up = dtypes.wide(update.up) * scale
    return rounding.store(up, dtypes.wide(update.down), outline.dtype, width, str(target))


def copy(adapter: Adapter, out: Path, overwrite: bool, check: Check) -> None:
    """Every tensor of an adapter's files as it is, with all metadata; into a folder, its config too.

    `check` sees what was read back, before `out` appears.

    Raises:
        OutputError: `out` cannot be written.   UsageError: the format is not for such an `out`.
    """
    dialect, bare = named(adapter.dialect), output.is_bare(out)
    check_place(dialect, bare, out)
    check_apart(out, [adapter])
    weights, *beside = adapter.provenance.files
    known = adapter.provenance.originals
    with noted() as again:
        file = open_weights(weights, adapter.name, allow_pickle=False)

    def confirm() -> None:
        for original in (*(known[path] for path in (weights, *beside) if path in known), *again.values()):
            original.confirm_place()

    with (new_file if bare else new_folder)(out, overwrite, confirm) as where:
        _copy(file, where if bare else where / str(dialect.weights))
        for path in () if bare else beside:
            with (where / path.name).open("xb") as made:
                made.writelines(open_original(path, path.name).pieces())
        check(load_path(where, str(out)))


def _copy(file: File, where: Path) -> None:
    layout = {key: (tensor.dtype, tensor.shape) for key, tensor in file.tensors.items()}
    with Writer(where, layout, file.metadata) as writer:
        for key, tensor in file.tensors.items():
            writer.write_pieces(key, pieces(tensor))
