"""A researcher's notebook: how do the weights of two adapters trade one task for the other?"""

# %% Open them once; every weighting after that takes milliseconds.
import loramerge as lm

pair = lm.open(["fixtures/a.safetensors", "fixtures/b.safetensors"])

# %% A table of weightings. `merge.report.to_frame()` has every module, if pandas is installed.
for share in (0.1, 0.3, 0.5, 0.7, 0.9):
    report = pair.combine("svd", rank=8, weights=[share, 1 - share]).report
    first, second = report.cosines
    print(f"{share:.1f}  cosine with a {first:.3f}, with b {second:.3f}, lost {report.energy_lost:.2%}")

# %% The default, which makes both equally strong, written with proof, and repeated from its record.
merge = lm.combine(["fixtures/a.safetensors", "fixtures/b.safetensors"], rank=8, out="notebook")
print(merge)
print(lm.diff(merge.adapter, lm.replay("notebook", folders=["fixtures"]).adapter).error)
