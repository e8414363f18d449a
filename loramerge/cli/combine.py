"""`loramerge combine`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from loramerge.algorithms import METHODS, name_of, options_of
from loramerge.arrays import dtypes
from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show, values
from loramerge.cli.asking import asked
from loramerge.cli.options import CONSUMERS, DEFAULT, FILTER_HELP, PICKLE_HELP, MethodCommand
from loramerge.errors import LoramergeError, printable
from loramerge.formats import output
from loramerge.formats.dialects import FORMATS
from loramerge.formats.extras import POLICIES
from loramerge.formats.files.atomic import check_output
from loramerge.formats.files.destination import real_path
from loramerge.formats.peft.profiles import PROFILES
from loramerge.merge.curve import Point, curve
from loramerge.merge.plan import Plan
from loramerge.merge.run import Merge, run
from loramerge.request.effort import Effort

if TYPE_CHECKING:
    from loramerge.hub.commits import Pushed


@click.command(cls=MethodCommand)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to write: NAME.safetensors for one "
    "file, another name for a folder.  [default: merged.safetensors if all sources are bare files, "
    "else merged]")  # fmt: skip
@click.option("--method", default=DEFAULT, show_default=True, metavar="NAME",
    help=f"{', '.join(METHODS)}; see `loramerge methods`.")  # fmt: skip
@click.option("--hub-filter", "filters", multiple=True, metavar="KEY=VALUE", help=FILTER_HELP)
@click.option("--recipe", type=click.Path(path_type=Path), help="A YAML file that says sources, weights, "
    "method, parameters, and weights or ranks by module; options given here come first.")  # fmt: skip
@click.option("--print-recipe", is_flag=True, help="Print this command as a recipe; merge nothing.")
@click.option("-w", "--weight", "each", type=float, multiple=True, help="Weight of a source, in order; "
    "once for each.  [default: 1 each]")  # fmt: skip
@click.option("--weights", "together", metavar="W,W,...", help="The weights at once: 0.7,-0.3.")
@click.option("--alpha", "alpha", multiple=True, metavar="[SOURCE=]A", help="Training alpha of bare files "
    "that do not say it: a number, or `rank` for scale 1.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    help="Type of the output.  [default: the widest of the sources]")  # fmt: skip
@click.option("--format", type=click.Choice(FORMATS), help="How the merge is written.  [default: as the "
    "sources, if these are of one format]")  # fmt: skip
@click.option("--profile", type=click.Choice(PROFILES), help="How ranks are written: portable, one for all "
    "modules; compact, each at its own, for PEFT, vLLM and diffusers.  [default: portable]")  # fmt: skip
@click.option("--total-rank", type=click.IntRange(min=1), help="Instead of a rank: the ranks of all modules "
    "together, shared so that the least energy is lost.")  # fmt: skip
@click.option("--size", callback=values.budget, metavar="SIZE", help="Instead of a rank: the bytes of the "
    "file of weights, such as 20MB, shared alike; never above.")  # fmt: skip
@click.option("--for", "consumer", type=click.Choice(CONSUMERS), help="The program that shall load it: "
    "the merge keeps to what it loads, or is refused. See `loramerge check`.")  # fmt: skip
@click.option("--max-rank", type=click.IntRange(min=1), help="The largest rank that this program was told to "
    "load.  [default: that of the program itself; 16 for vLLM]")  # fmt: skip
@click.option("--only", metavar="REGEX", help="Merge only modules whose name holds a match.")
@click.option("--exclude", metavar="REGEX", help="Leave out modules whose name holds a match.")
@click.option("--extras", type=click.Choice(POLICIES), default="refuse", show_default=True,
    help="Tensors that are no low-rank pair (heads, biases, token rows): keep those of the first source "
    "that has them, their weighted mean, or none.")  # fmt: skip
@click.option("--initial", multiple=True, metavar="SOURCE=PATH", callback=values.pairs,
    help="The adapter that the training of a source began with: makes PiSSA, OLoRA, CorDA and LoRA-GA "
    "plain, exactly.")  # fmt: skip
@click.option("--renormalise", is_flag=True, help="Where a source lacks a module, divide by the weights "
    "of those that have it, instead of counting it as zero.")  # fmt: skip
@click.option("--scale", callback=values.scale, metavar="S", help="Strength of the merge: a number; `norm`, "
    "every module as strong as its sources on average; `cosine`, modules weighed for the largest smallest "
    "cosine with a source.  [default: 1]")  # fmt: skip
@click.option("--description", "told", multiple=True, metavar="SOURCE=TEXT", callback=values.pairs,
    help="What a source is good at, for --method sg; else descriptions.json beside it, or its model card, "
    "says it.")  # fmt: skip
@click.option("--descriptions", metavar="FILE", help='A JSON file of that: {"SOURCE": "TEXT"}.')
@click.option("--embedding", metavar="HOW", help="How descriptions are compared: tfidf, by the words they "
    "share; a .npz, .safetensors or .json of vectors by name; or a sentence-transformers model.  "
    "[default: tfidf]")  # fmt: skip
@click.option("--spread", type=click.Path(path_type=Path), metavar="FILE", help="Write how far sources of "
    "sg or average are apart, entry by entry of ΔW, as a dense .safetensors: 4 bytes a weight.")  # fmt: skip
@click.option("--max-error", type=click.FloatRange(min=0), callback=values.number,
    help="Fail (exit 4) if rounding costs a module more than this share of its norm.")  # fmt: skip
@click.option(
    "--allow-base-mismatch", is_flag=True, help="Merge although the sources name other base models."
)
@click.option("--threads", type=click.IntRange(min=1), help="Workers; the result does not depend on it.  "
    "[default: one per core, up to 8]")  # fmt: skip
@click.option("--memory", callback=values.size, default="1GB", show_default=True, metavar="SIZE",
    help="Memory for all workers, such as 500MB.")  # fmt: skip
@click.option("--allow-pickle", is_flag=True, help=PICKLE_HELP)
@click.option("--push", "repo", metavar="ORG/NAME", help="Put the merge on the Hub too, with a card, as "
    "`loramerge push` does.")  # fmt: skip
@click.option("--private", is_flag=True, help="Make the repository of --push a private one.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--dense-delta", is_flag=True, help="Write full matrices ΔW instead of an adapter: one "
    "tensor for each parameter, in one .safetensors; as .diff in the formats kohya and comfy.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be merged and written, and the error at "
    "other sizes; write nothing.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the path of the output.")
@click.pass_context
def combine(
    ctx: click.Context,
    /,
    sources: tuple[str, ...],
    out: Path | None,
    method: str,
    recipe: Path | None,
    print_recipe: bool,
    each: tuple[float, ...],
    together: str | None,
    alpha: tuple[str, ...],
    max_error: float | None,
    overwrite: bool,
    dense_delta: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    threads: int | None,
    memory: float,
    allow_pickle: bool,
    initial: dict[str, str],
    filters: tuple[str, ...],
    repo: str | None,
    private: bool,
    told: dict[str, str],
    spread: Path | None,
    **settings: Any,
) -> None:
    """Merge adapters into one adapter.

    A SOURCE is a folder or a .safetensors of any format that is read; or many: a folder of them, a quoted
    glob, or @FILE with a source on each line and maybe its weight after it. What is no path here is a
    repository of the Hub: org/name, org/name@revision, hf://org/name@revision/path,
    hf://collections/owner/slug. The options of the method come last in this list: `loramerge combine
    --method lego --help` shows those of lego.

    \b
    Example:
      loramerge combine a.safetensors b.safetensors --method lego --rank 16 -o merged
    """
    if quiet and as_json:
        raise click.UsageError("--json and --quiet both decide what is printed: give one of them.")
    if private and repo is None:
        raise click.UsageError("--private is for the repository of --push.")
    if repo is not None:
        from loramerge.hub.commits import destination  # the Hub is for those who name it

        destination(repo)
    weights = values.weights(each, together)
    sources = (*sources, *values.hub_filter(filters))
    settings["descriptions"] = values.descriptions(told, settings["descriptions"])
    keep_freed_memory()
    effort = Effort(threads, memory)
    wanted = asked(ctx, recipe, sources, weights, values.alphas(alpha), settings)
    if print_recipe:
        return click.echo(wanted.to_yaml(), nl=False)
    bare = None if out is None else output.is_bare(out)
    rivals = {"--dry-run": dry_run, "--max-error": max_error is not None, "--push": repo, "--spread": spread}
    rivals["--for"] = wanted.consumer  # nothing checks that it loads full matrices
    if dense_delta and any(rivals.values()):
        raise click.UsageError(f"{next(name for name in rivals if rivals[name])} is not for --dense-delta.")
    todo = wanted.plan(effort, allow_pickle=allow_pickle, initial=initial, bare=bare, watch=show.opening)
    out = out or (Path("merged.safetensors") if dense_delta else todo.default_out("merged"))
    if todo.outline.masks is not None and not quiet:
        count, taken = len(todo.outline.masks.tasks), show.size(todo.outline.masks.nbytes)
        show.note(f"note: the masks of {count} task{'s' if count > 1 else ''} take {taken}")
    if not dense_delta:
        todo.check_destination(out)
    if spread is not None:
        from loramerge.merge.spread import check_mixture

        check_mixture(todo)
        check_output(spread, overwrite, folder=False)
        if real_path(spread) == real_path(out):
            raise click.UsageError("--spread and --out name the same file.")
    if dry_run:
        check_output(out, overwrite, folder=not output.is_bare(out))
        if repo is not None:
            show.note(f"note: it would be put on the Hub as {repo}{', in private' if private else ''}")
        return show_plan(todo, out, effort, as_json, quiet)
    if dense_delta:
        return show_deltas(todo, out, overwrite, effort, as_json, quiet)
    merge = run(todo, out, overwrite=overwrite, max_error=max_error, effort=effort, progress=show.progress)
    if spread is not None:
        from loramerge.merge.spread import write_spread

        write_spread(todo, spread, overwrite=overwrite, effort=effort)
    if repo is None:
        return show_merge(merge, todo, out, as_json, quiet)
    if not as_json:
        show_merge(merge, todo, out, as_json, quiet)
    done = pushed(out, repo, private, merge)
    return show_merge(merge, todo, out, as_json, quiet, done) if as_json else show_pushed(done, quiet)


def pushed(out: Path, repo: str, private: bool, merge: Merge) -> Pushed:
    """The merge on the Hub; what is written stays written, whatever the Hub says."""
    from loramerge.verbs.push import push

    try:
        return push(out, repo, private=private, report=merge.report.to_dict())
    except LoramergeError as error:
        place = quote(printable(out, 1000))
        said = f"{error} The merge is written: loramerge push {place} {repo} sends it."
        raise type(error)(said) from None


def show_pushed(done: Pushed, quiet: bool) -> None:
    for note in done.notes:
        show.note(f"note: {note}")
    if not quiet:
        show.note(f"pushed {printable(done.url)}")


def show_deltas(todo: Plan, out: Path, overwrite: bool, effort: Effort, as_json: bool, quiet: bool) -> None:
    """Write dense deltas, and what they kept and lost."""
    from loramerge.verbs.deltas import write_deltas

    made = write_deltas(todo, out, overwrite=overwrite, effort=effort, progress=show.progress)
    if as_json:
        return show.data({"out": str(out), **made.to_dict()})
    if quiet:
        return click.echo(str(out))
    for note in made.notes:
        show.note(f"note: {note}")
    click.echo(str(made))
    show.note(f"wrote {printable(out)}: {name_of(todo.method)}, {len(made.modules)} dense deltas")
    return None


def show_plan(todo: Plan, out: Path, effort: Effort, as_json: bool, quiet: bool) -> None:
    """What would be written, and what other sizes would lose."""
    if quiet:
        return click.echo(str(out))
    points = curve(todo, effort, output.is_bare(out))
    facts = {
        "out": str(out),
        "method": {"name": name_of(todo.method), "options": options_of(todo.method)},
        "sources": [a.name for a in todo.sources.adapters],
        "weights": todo.weights.tolist(),
        "modules": len(todo.sources.signatures),
        "rank": todo.outline.largest,
        "ranks": dict(todo.outline.ranks),
        "dtype": dtypes.word(todo.outline.dtype),
        "format": todo.sources.dialect.name,
        "bytes": todo.outline.nbytes,
        "curve": [point.to_dict() for point in points],
        "notes": list(todo.notes),
    }
    if as_json:
        return show.data(facts)
    for note in todo.notes:
        show.note(f"note: {note}")
    for name, weight in zip(facts["sources"], facts["weights"], strict=True):
        click.echo(f"{weight:g} × {printable(name)}")
    click.echo(f"would write {_what(todo, out)}")
    _show_curve(points)
    return None


def _show_curve(points: list[Point]) -> None:
    if not points:
        return
    click.echo(f"{'total rank':>10}  {'largest':>7}  {'size':>9}  energy lost at best")
    for point in points:
        size, lost = show.size(point.bytes), f"{100 * point.energy_lost:.3g} %"
        click.echo(f"{point.total_rank:>10}  {point.rank:>7}  {size:>9}  {lost:>19}")


def show_merge(
    merge: Merge, todo: Plan, out: Path, as_json: bool, quiet: bool, done: Pushed | None = None
) -> None:
    """What was kept and lost, and where it lies."""
    if as_json:
        name, options = name_of(merge.method), options_of(merge.method)
        made = {"out": str(out), "method": {"name": name, "options": options}}
        sent = {"pushed": done.url} if done else {}
        return show.data({**made, **sent, **merge.report.to_dict()})
    if quiet:
        return click.echo(str(out))
    for note in merge.report.notes:
        show.note(f"note: {note}")
    click.echo(str(merge.report))
    show.note(f"wrote {_what(todo, out)}")
    return None


def _what(todo: Plan, out: Path) -> str:
    outline = todo.outline
    return (
        f"{printable(out)}: {name_of(todo.method)}, {len(todo.sources.signatures)} modules, "
        f"{_ranks(todo)}, {dtypes.word(outline.dtype)}, {show.size(outline.nbytes)}"
    )


def _ranks(todo: Plan) -> str:
    outline = todo.outline
    if not outline.ranks:
        return f"rank {outline.rank}"
    least = min(outline.rank, *outline.ranks.values())
    return f"ranks {least} to {outline.largest}"
