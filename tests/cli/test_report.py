"""`loramerge report`, and `combine --report`."""

import pytest

from tests.helpers.files import folder, tensors

pytest.importorskip("altair")
pytest.importorskip("vl_convert")


@pytest.fixture
def ab(tmp_path):
    return folder(tmp_path / "a", tensors(0)), folder(tmp_path / "b", tensors(1))


def test_report_writes_a_page_and_lists_its_sections(cli, ab, tmp_path):
    cli("report", "a", "b", "--method", "svd", "-o", "page.html")
    assert cli.code == 0, cli.err
    assert cli.out.splitlines()[:2] == ["a, b", "  Sources"]
    assert "wrote page.html: 8 sections" in cli.err
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    cli("report", "a", "b", "-o", "page.html").refused(1, "page.html exists")
    cli("report", "a", "--method", "svd", "-o", "page.html", "--overwrite", "-q")
    assert (cli.code, cli.out, cli.err) == (0, "page.html\n", "")


def test_combine_writes_the_page_of_its_merge(cli, ab, tmp_path):
    cli("combine", "a", "b", "--method", "svd", "--rank", "2", "-o", "m", "--report", "m.html")
    assert cli.code == 0, cli.err
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert "<title>A merge of a, b</title>" in page
    assert "The merge by svd: m" in page
    assert "rank: 2" in page, "the recipe"


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--dry-run"], 2, "--dry-run"),
        (["--dense-delta"], 2, "--report is not for --dense-delta"),
        (["--fuse", "base"], 2, "--report is not for --fuse"),
        (["-o", "page.html.safetensors", "--report", "a/page.html"], 1, "a"),
    ],
)
def test_where_there_is_no_page_that_is_said_before_anything_is_written(cli, ab, tmp_path, more, code, words):
    before = sorted(path.name for path in tmp_path.iterdir())
    cli("combine", "a", "b", "--report", "page.html", *more)
    assert (cli.code, cli.out) == (code, "")
    assert words in cli.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_existing_page_is_not_replaced_unasked(cli, ab, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    cli("combine", "a", "b", "--report", "page.html", "-o", "m").refused(
        1, "page.html exists. Choose another --report, or"
    )
    assert (tmp_path / "page.html").read_text() == "mine"
    assert not (tmp_path / "m").exists()


def test_a_page_that_fails_after_the_merge_says_that_the_merge_is_there(cli, tmp_path, monkeypatch):
    from loramerge.errors import OutputError
    from loramerge.pages import page

    def full(*_):
        raise OutputError("There is no space left while writing page.html.")

    folder(tmp_path / "a", tensors(0))
    monkeypatch.setattr(page, "write_page", full)
    cli("combine", "a", "-o", "m", "--report", "page.html").refused(1, "page.html. The merge is written: m.")
    assert (tmp_path / "m" / "adapter_config.json").exists()


def test_a_page_that_is_meant_by_another_name_is_found(cli):
    cli("page", "a")
    assert cli.code == 2
    assert "Did you mean report?" in cli.err
