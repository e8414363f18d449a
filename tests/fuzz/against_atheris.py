"""Hypothesis by grammar and atheris by coverage, side by side: how many refusals of ours does each reach?

    pip install atheris
    python -m tests.fuzz.against_atheris hypothesis|atheris headers|pickles SECONDS

Each gets so many seconds of CPU and one good file, and says at every tenth of them what it has reached.
A refusal is known by the line that raises it.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

way, kind, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3])
if way == "atheris":
    import atheris

    with atheris.instrument_imports(include=["loramerge"]):
        import loramerge as lm
        from loramerge.errors import LoramergeError
        from loramerge.formats.files.pickles import open_pickle
else:
    import loramerge as lm
    from loramerge.errors import LoramergeError
    from loramerge.formats.files.pickles import open_pickle

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402  (instrumented imports come first)

from tests.fuzz.test_bytes import HEADERS, PROGRAMS, TENSOR, honest, safetensors, spoilt  # noqa: E402

place = Path(tempfile.mkdtemp()) / ("f.safetensors" if kind == "headers" else "f.bin")
GOOD = {
    "headers": safetensors(
        {
            f"base_model.model.q.lora_{side}.weight": {
                "dtype": "F32",
                "shape": [2, 2],
                "data_offsets": [a, a + 16],
            }
            for side, a in (("A", 0), ("B", 16))
        },
        bytes(32),
    ),
    "pickles": b"\x80\x02}(X\x01\x00\x00\x00a" + TENSOR + b"u.",
}
found: dict[str, int] = {}
runs = tenths = 0


def read(data):
    global runs, tenths
    runs += 1
    if (used := time.process_time() - began) > seconds * (tenths + 1) / 10:
        tenths += 1
        bugs = [site for site in found if site.startswith("BUG")]
        said = {"way": way, "kind": kind, "seconds": round(used), "runs": runs, "sites": len(found)}
        print(json.dumps(said | {"bugs": bugs}), flush=True)
    if tenths == 10:
        print(sorted(found), flush=True)
        os._exit(0)
    place.write_bytes(data)
    os.utime(place, (0, 0))  # of a new file it is waited that a later write would have another time
    try:
        if kind == "headers":
            for update in lm.load(place, alpha="rank").values():
                update.norm()
        else:
            open_pickle(place, "f.bin")
        site = "fine"
    except LoramergeError as error:
        site = raised(error.__cause__ or error.__context__ or error)
    except Exception as error:
        site = f"BUG {error!r}"
    found[site] = found.get(site, 0) + 1


def raised(error):
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    return f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"


began = time.process_time()
read(GOOD[kind])
if way == "atheris":
    corpus = Path(tempfile.mkdtemp())
    (corpus / "good").write_bytes(GOOD[kind])
    atheris.Setup([sys.argv[0], "-verbosity=0", "-max_len=4096", str(corpus)], read)
    atheris.Fuzz()
else:
    files = {
        "headers": HEADERS.map(lambda h: safetensors(h, bytes(32))) | spoilt(honest()),
        "pickles": PROGRAMS | spoilt(PROGRAMS),
    }
    for number in range(10**6):  # Hypothesis ends a run that finds nothing new
        settings(
            max_examples=2000, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(seed(number)(given(files[kind])(read)))()  # fmt: skip
