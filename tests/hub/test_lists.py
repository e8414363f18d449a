"""Many adapters of the Hub by one name: collections and filters; one bar over their downloads."""

import pytest

import loramerge as lm
from loramerge.errors import LoramergeError, UsageError
from loramerge.hub.progress import Counter, watching
from loramerge.sources.expand import expand
from tests.helpers.files import folder, tensors
from tests.hub.loopback import files_of

BASE = "base_model:adapter:org/base"


@pytest.fixture
def three(hub, tmp_path):
    for n in range(3):
        owner = "me" if n == 2 else "org"
        files = files_of(folder(tmp_path / f"n{n}", tensors(n)))
        hub.add(f"{owner}/n{n}", files, tags=["peft", BASE, "math"] if n else ["peft", BASE])
    hub.add("org/base", {"config.json": b"{}", "model.safetensors": b"x"})
    items = [("model", "org/n1"), ("model", "org/base"), ("dataset", "org/data"), ("model", "me/n2")]
    hub.collections["me/best-1"] = items
    hub.collections["me/empty"] = [("paper", "2401.00001")]
    return [tmp_path / f"n{n}" for n in range(3)]


def test_a_collection_stands_for_the_adapters_in_it(hub, three):
    assert expand("hf://collections/me/best-1") == [("hf://org/n1", None), ("hf://me/n2", None)]
    merge = lm.combine(["hf://collections/me/best-1"], weights=[1, 2])
    assert merge.report.sources == ("n1", "n2")
    assert lm.diff(merge.adapter, lm.combine(three[1:], weights=[1, 2]).adapter).largest == 0


def test_the_command_line_tells_what_a_list_holds(hub, three, cli):
    assert cli("combine", "hf://collections/me/best-1", "-o", "m").code == 0
    assert "the collection me/best-1 also holds 2 things that are not adapters" in cli.err
    assert cli("inspect", "--hub-filter", "base_model=org/base", "--hub-filter", "tag=math").code == 0
    assert "2 adapters of the Hub with base_model=org/base, tag=math: org/n1, me/n2" in cli.err
    assert cli.out.count("PEFT folder") == 2
    assert not hub.got("GET", "n1/resolve/main/README.md")


FILTERS = {
    "base_model=org/base": ["org/n0", "org/n1", "me/n2"],
    "author=me": ["me/n2"],
    "tag=math": ["org/n1", "me/n2"],
    "search=n0": ["org/n0"],
    "base_model=org/base&limit=2": ["org/n0", "org/n1"],
    "base_model=org%2Fbase&author=org&tag=math": ["org/n1"],
}


@pytest.mark.parametrize(("query", "found"), FILTERS.items(), ids=FILTERS)
def test_a_filter_finds_the_adapters_of_the_hub(hub, three, query, found):
    assert expand(f"hf://?{query}") == [(f"hf://{name}", None) for name in found]


def test_a_filter_is_a_source_like_others(hub, three, tmp_path, cli):
    (tmp_path / "list").write_text("hf://?author=me 0.5\nhf://collections/me/best-1\n")
    assert lm.combine([f"@{tmp_path}/list"]).report.weights == (0.5, 1.0, 1.0)
    assert cli("combine", three[0], "--hub-filter", "author=me", "-o", "m", "--weights", "1,2").code == 0
    assert lm.diff("m", lm.combine([three[0], three[2]], weights=[1, 2]).adapter).largest < 1e-12
    (tmp_path / "r.yaml").write_text("sources: ['hf://?author=me']\n")
    assert cli("combine", "--recipe", tmp_path / "r.yaml", "-o", "n").code == 0


def test_a_limit_is_told(hub, three, cli):
    cli("inspect", "--hub-filter", "base_model=org/base", "--hub-filter", "limit=1")
    assert "1 adapters of the Hub with base_model=org/base, limit=1, the 1 most downloaded" in cli.err


REFUSED = {
    "hf://collections/me/none": "The Hub has no collection me/none",
    "hf://collections/me": "is not a collection: write hf://collections/OWNER/SLUG",
    "hf://collections/me/empty": "holds no adapter, only 1 other things",
    "hf://?base_model=org/other": "The Hub has no adapter with base_model=org/other",
    "hf://?colour=red": "is not a filter: give each KEY=VALUE once",
    "hf://?author=a&author=b": "is not a filter: give each KEY=VALUE once",
    "hf://?author=": "is not a filter: give each KEY=VALUE once",
    "hf://?limit=5": "A limit alone would list the whole Hub",
    "hf://?author=me&limit=0": "limit=0 is not a whole number from 1 to 1000",
    "hf://?author=me&limit=x": "limit=x is not a whole number from 1 to 1000",
}


@pytest.mark.parametrize(("source", "words"), REFUSED.items(), ids=REFUSED)
def test_a_list_that_is_none_is_refused(hub, three, source, words):
    with pytest.raises(LoramergeError) as error:
        lm.combine([source])
    assert words in str(error.value)


@pytest.mark.parametrize("text", ["author", "colour=red", "author=", "=me"])
def test_a_filter_on_the_command_line_is_a_key_and_a_value(hub, cli, text):
    cli("combine", "--hub-filter", text).refused(2, "--hub-filter", "give KEY=VALUE")


def test_all_downloads_are_one_count_of_bytes(hub, three):
    coming, come = [], []

    def watch(total, done):
        coming.append(total)
        come.append(done)

    with watching(watch):
        lm.combine(["hf://collections/me/best-1"])
    sizes = sum(len(data) for n in (1, 2) for data in files_of(three[n]).values())
    assert sum(coming) == sum(come) == sizes
    with watching(watch):
        lm.combine(["hf://collections/me/best-1"])
    assert sum(come) == sizes, "what is cached does not come again"


def test_the_command_line_shows_one_bar(hub, three, cli, monkeypatch):
    import tqdm

    class Bar(list):
        def __init__(self, total, **_):
            self.total = total
            bars.append(self)

        def update(self, n):
            self.append(n)

        def close(self):
            self.closed = True

    bars = []
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    assert cli("inspect", "--download", "hf://collections/me/best-1", "org/n0").code == 0
    (bar,) = bars
    assert bar.total == sum(bar) == sum(len(data) for path in three for data in files_of(path).values())
    assert bar.closed


def test_a_download_by_xet_is_counted_once():
    """Its reporter counts bytes on the wire and bytes on the disk apart, on one bar."""
    from types import SimpleNamespace

    reporting = pytest.importorskip("huggingface_hub.utils._xet_progress_reporting")
    told = []
    with (
        watching(lambda total, done: told.append((total, done))),
        reporting.XetDownloadProgressReporter(
            reconstruction_desc="x", total=100, log_level=30, tqdm_class=Counter
        ) as reporter,
    ):
        for done in (40, 100):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes=100,
                    total_bytes_completed=done,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completed=done // 2,
                    total_transfer_bytes_completion_rate=1.0,
                )
            )
    assert [sum(each) for each in zip(*told, strict=True)] == [100, 100]


def test_a_list_where_one_adapter_is_needed(hub, three, cli):
    cli("diff", "hf://collections/me/best-1", three[0]).refused(1, "is a list of adapters: name one of them")


def test_a_name_with_no_repository_fails_by_that_name(hub, three, cli):
    hub.collections["me/best-1"].append(("model", "org/gone"))
    cli("combine", "hf://collections/me/best-1")
    assert cli.code == 1
    assert "org/gone" in cli.err


def test_usage_errors_need_no_hub():
    with pytest.raises(UsageError, match="whole Hub"):
        expand("hf://?limit=5")
