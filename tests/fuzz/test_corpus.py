"""What was found once stays mended. In a child with little memory and time, since it may be a bomb."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.corpus import CORPUS

READ = """
import resource, sys
import loramerge as lm
from loramerge.errors import LoramergeError
from loramerge.adapters.base_models import twins
from loramerge.formats.cards.readme import said
from loramerge.request.recipe_text import read
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for path in sys.argv[1:]:
    try:
        if path.endswith("json"):
            lm.replay(path)
        elif path.endswith("yaml"):
            read(path)
        elif path.endswith((".md", ".base")):  # these decide nothing, and must only end
            text = open(path).read()
            said(text) or twins(text, "a/b")
            print(path, "refused", "nothing")
        else:
            lm.combine([path], alpha=1, allow_pickle=True)
    except LoramergeError as error:
        print(path, "refused", ascii(str(error))[:80], flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of processes")
def test_every_input_is_refused(tmp_path):
    paths = []
    for number, (name, data) in enumerate(CORPUS.values()):
        place = tmp_path / f"{number}{Path(name).suffix}"
        place.write_bytes(data)
        paths.append(str(place))
    made = subprocess.run(
        [sys.executable, "-c", READ, *paths], capture_output=True, text=True, timeout=120, check=False
    )
    refused = {Path(line.split()[0]).stem for line in made.stdout.splitlines() if " refused " in line}
    kinds = dict(zip(map(str, range(len(CORPUS))), CORPUS, strict=True))
    assert made.returncode == 0, made.stderr[-2000:]
    assert not [kind for number, kind in kinds.items() if number not in refused]
