"""`loramerge push`."""

from __future__ import annotations

from pathlib import Path

import click

from loramerge.cli import show
from loramerge.cli.groups import Command
from loramerge.verbs.push import push as send


@click.command(cls=Command)
@click.argument("path", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--revision", metavar="BRANCH", help="The branch to commit to; created if it does not exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the address and the commit as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the address.")
def push(
    path: Path,
    repo_id: str,
    private: bool,
    create_pr: bool,
    revision: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Upload an adapter to the Hub, in one commit, with a card that says how it was made.

    DIR is a PEFT folder or a .safetensors file. It is loaded first: what cannot be read is not sent. If there
    is no README.md, a card is written from the record of the merge: sources, weights, method, figures,
    licences, and how to load it. Log in with `hf auth login`, or set HF_TOKEN.

    \b
    Example:
      loramerge push merged me/merged --private
    """
    if quiet and as_json:
        raise click.UsageError("--json and --quiet both decide what is printed: give one of them.")
    done = send(path, repo_id, private=private, create_pr=create_pr, revision=revision)
    if as_json:
        return show.data({"repo": done.repo, "commit": done.commit, "url": done.url, "changed": done.changed})
    for note in () if quiet else done.notes:
        show.note(f"note: {note}")
    if not quiet and not done.changed:
        show.note(f"note: {done.repo} has all of it already")
    click.echo(done.url)
    return None
