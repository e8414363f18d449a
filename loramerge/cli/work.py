"""What `loramerge combine` does once its options are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loramerge.arrays.backend import keep_freed_memory
from loramerge.cli import show, values
from loramerge.cli.request import asked
from loramerge.cli.results import (
    Printed,
    check_printed,
    notes_of,
    show_deltas,
    show_done,
    show_merge,
    show_plan,
    show_pushed,
)
from loramerge.errors import LoramergeError, calling, printable, say
from loramerge.formats import output
from loramerge.formats.files.atomic import check_output
from loramerge.formats.files.destination import real_path
from loramerge.hub.escape import shell
from loramerge.merge.full import check_low
from loramerge.merge.plan import Plan
from loramerge.merge.planner import planned
from loramerge.merge.run import Merge, run
from loramerge.request.doors import LIMITS, why_not
from loramerge.request.entry import taken
from loramerge.request.recipe import Recipe
from loramerge.request.request import FIELDS
from loramerge.verbs.combine import as_run, planned_alike

if TYPE_CHECKING:
    from loramerge.hub.commits import Pushed


def work(ctx: click.Context, given: dict[str, Any]) -> None:
    """Merge, or do what was asked for in its place: print the recipe, plan, write dense deltas."""
    printed = check_printed(given)
    _check_push(given)
    keep_freed_memory()
    recipe = asked(ctx, given["recipe"], (*given["sources"], *values.hub_filter(given["filters"])))
    if given["print_recipe"]:
        return _print_recipe(recipe)
    _check_dense(given, recipe)
    if given["whole_model"] is not None:
        return _fuse(given, recipe, printed)
    dense = given["dense_delta"]
    whole = planned if dense or given["spread"] is not None else planned_alike  # ΔW has no gate
    plan = whole(recipe.asking(progress=show.bar()))
    out = plan.request.out or (Path("merged.safetensors") if dense else plan.default_out("merged"))
    plan = plan.asking(out=out)
    _tell_masks(plan, printed)
    if not dense:
        plan.check_destination(out)
    if given["spread"] is not None:
        with calling(out="spread"):
            _check_spread(plan, given["spread"], out)
    if given["page"] is not None:
        with calling(out="report"):
            _check_page(plan, given, out)
    if given["dry_run"]:
        _dry(plan, out, given, printed)
    elif dense:
        show_deltas(plan, out, printed)
    else:
        _merge(plan, out, given, printed, recipe)
    return None


def _check_push(given: dict[str, Any]) -> None:
    if given["private"] and given["repo"] is None:
        raise click.UsageError("--private is for the repository of --push.")
    if given["repo"] is not None:
        from loramerge.hub.commits import destination  # the Hub is for those who name it

        destination(given["repo"])


def _print_recipe(recipe: Recipe) -> None:
    """The recipe on stdout; what it cannot say on stderr, never dropped in silence."""
    from loramerge.request.recipe_text import unsaid, written

    for name in (name for name in unsaid(recipe) if name in taken("command")):
        field = FIELDS[name]
        why = why_not("recipe", name, field.part)
        show.note(f"note: a recipe does not say --{field.option.replace('_', '-')}: {why}")
    click.echo(written(as_run(recipe)), nl=False)


def _check_dense(given: dict[str, Any], recipe: Recipe) -> None:
    if not given["dense_delta"]:
        return
    rivals = {
        "--dry-run": given["dry_run"],
        **{say(name): getattr(recipe.request, name) is not None for name in LIMITS},
        "--push": given["repo"],
        "--spread": given["spread"],
        "--report": given["page"],
        "--for": recipe.request.consumer,  # nothing checks that it loads full matrices
        "--keep-form": recipe.request.keep_form,
    }
    if any(rivals.values()):
        raise click.UsageError(f"{next(name for name in rivals if rivals[name])} is not for --dense-delta.")


def _fuse(given: dict[str, Any], recipe: Recipe, printed: Printed) -> None:
    """The merge added to a model; it is rounded once, with the weights."""
    from loramerge.checkpoints.open import open_checkpoint
    from loramerge.checkpoints.write import check_place
    from loramerge.request.request import Request
    from loramerge.verbs.fuse import fused

    _check_fuse(given, recipe)
    request, base = recipe.request, str(given["whole_model"])
    out = request.out or Path("fused")
    check_place(open_checkpoint(base), out, request.overwrite)
    recipe = recipe.asking(out=None, dtype=request.dtype or "float32", base=request.base or base)
    merge = run(planned(recipe.asking(progress=show.bar())))
    for note in merge.report.notes if printed == "words" else ():
        show.note(f"note: {note}")
    if printed == "words":
        click.echo(str(merge.report))
    here = Request(
        overwrite=request.overwrite, threads=request.threads, memory=request.memory, progress=show.bar()
    )
    done = fused(merge.adapter, base, out, here)
    if printed == "json":  # in words the merge has told it above
        done = replace(done, said=(*notes_of(merge.report), *done.said))
    show_done(done, printed)


def _check_fuse(given: dict[str, Any], recipe: Recipe) -> None:
    rivals = {
        "--dense-delta": given["dense_delta"],
        "--dry-run": given["dry_run"],
        "--max-error": recipe.request.max_error is not None,
        "--push": given["repo"],
        "--spread": given["spread"],
        "--report": given["page"],
        "--for": recipe.request.consumer,
        "--keep-form": recipe.request.keep_form,
    }
    if any(rivals.values()):
        raise click.UsageError(f"{next(name for name in rivals if rivals[name])} is not for --fuse.")


def _tell_masks(plan: Plan, printed: Printed) -> None:
    masks = plan.outline.masks
    if masks is not None and printed != "path":
        count, taken = len(masks.tasks), show.size(masks.nbytes)
        show.note(f"note: the masks of {count} task{'s' if count > 1 else ''} take {taken}")


def _check_spread(plan: Plan, spread: Path, out: Path) -> None:
    from loramerge.merge.spread import check_mixture

    check_mixture(plan)
    plan.check_apart(spread)
    check_output(spread, plan.request.overwrite, folder=False)
    if real_path(spread) == real_path(out):
        raise click.UsageError("--spread and --out name the same file.")


def _check_page(plan: Plan, given: dict[str, Any], out: Path) -> None:
    """Said before the merge: the page cannot be written there, or there is nothing that it could be about."""
    from loramerge.pages.page import check_page

    if given["dry_run"]:
        raise click.UsageError("--report is about the merge that is made: it is not for --dry-run.")
    plan.check_apart(given["page"])
    check_page(given["page"], plan.request.overwrite)
    places = [out, *filter(None, [given["spread"]])]
    if real_path(given["page"]) in map(real_path, places):
        raise click.UsageError("--report names the same file as another output.")


def _dry(plan: Plan, out: Path, given: dict[str, Any], printed: Printed) -> None:
    check_low(plan)
    check_output(out, plan.request.overwrite, folder=not output.is_bare(out))
    if plan.request.keep_form:
        from loramerge.verbs.keep_form import formed  # few merges keep a form

        plan = formed(plan)
    if given["repo"] is not None:
        private = ", in private" if given["private"] else ""
        show.note(f"note: it would be put on the Hub as {given['repo']}{private}")
    show_plan(plan, out, printed)


def _made(plan: Plan) -> Merge:
    if not plan.request.keep_form:
        return run(plan)
    from loramerge.verbs.keep_form import kept  # few merges keep a form

    return kept(plan)


def _write_beside(merge: Merge, plan: Plan, out: Path, given: dict[str, Any], recipe: Recipe) -> None:
    """The page and the spread of a merge that is written."""
    if given["page"] is not None:
        from loramerge.pages.report import page_of
        from loramerge.pages.subject import subject_of

        page = page_of(subject_of(merge, recipe.sources, str(out)))
        with calling(out="report"):
            page.save(given["page"], overwrite=plan.request.overwrite)
    if given["spread"] is not None:
        from loramerge.merge.spread import write_spread

        with calling(out="spread"):
            write_spread(plan, given["spread"], plan.request.overwrite)


def _merge(plan: Plan, out: Path, given: dict[str, Any], printed: Printed, recipe: Recipe) -> None:
    check_low(plan)
    merge, repo = _made(plan), given["repo"]
    plan = merge.plan if plan.request.keep_form else plan
    try:
        _write_beside(merge, plan, out, given, recipe)
    except LoramergeError as error:
        raise type(error)(f"{error} The merge is written: {printable(out, limit=1000)}.") from error
    if repo is None:
        return show_merge(merge, plan, out, printed)
    if printed != "json":
        show_merge(merge, plan, out, printed)
    done = _pushed(out, repo, given["private"], merge)
    return show_merge(merge, plan, out, printed, done) if printed == "json" else show_pushed(done, printed)


def _pushed(out: Path, repo: str, private: bool, merge: Merge) -> Pushed:
    """The merge on the Hub; what is written stays written, whatever the Hub says."""
    from loramerge.verbs.push import push

    try:
        return push(out, repo, private=private, report=merge.report.to_dict())
    except LoramergeError as error:
        place = shell(out)
        said = f"{error} The merge is written: loramerge push {place} {repo} sends it."
        raise type(error)(said) from None
