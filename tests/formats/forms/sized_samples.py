"""Forms that need the sizes of layers, by definition and by PEFT."""

from __future__ import annotations

import numpy as np

from loramerge.formats.forms.draws import Draws, frame
from tests.formats.forms import authors
from tests.formats.forms.sample import Sample, n
from tests.helpers.dialects import product


def vera(rng):
    a, b, over, under = n(rng, 2, 20), n(rng, 19, 2), n(rng, 14), n(rng, 2)
    wanted = np.zeros((14, 12))
    for o, i, k in np.ndindex(14, 12, 2):
        wanted[o, i] += over[o] * b[o, k] * under[k] * a[k, i]
    parts, shared = {"vera_lambda_b": over, "vera_lambda_d": under}, {"vera_A": a, "vera_B": b}
    theirs = authors.peft_merged("VeraConfig", (14, 12), shared, beside=(19, 20), r=2)
    config = {"peft_type": "VERA"}
    return Sample("peft", parts, wanted, 2, None, set(), theirs, config=config, shared=shared, size=(14, 12))


def vera_drawn(rng):
    """Of which only the seed is kept; torch's generator is the oracle."""
    over, under = n(rng, 14), n(rng, 2)
    config = {"peft_type": "VERA", "save_projection": False, "projection_prng_key": 3}
    a, b = (t.read() for t in frame(3, (2, 12), (14, 2)))
    wanted = product(over[:, None] * b, under[:, None] * a)
    theirs = authors.peft_merged("VeraConfig", (14, 12), r=2, save_projection=False, projection_prng_key=3)
    parts = {"vera_lambda_b": over, "vera_lambda_d": under}
    return Sample("peft", parts, wanted, 2, None, set(), theirs, rank=2, config=config, size=(14, 12))


def pvera(rng):
    a, b, over, under = n(rng, 4, 20), n(rng, 19, 2), n(rng, 14), n(rng, 4)
    wanted = np.zeros((14, 12))
    for o, i, k in np.ndindex(14, 12, 2):
        wanted[o, i] += over[o] * b[o, k] * under[k] * a[k, i]
    parts, shared = {"pvera_lambda_b": over, "pvera_lambda_d": under}, {"pvera_A": a, "pvera_B": b}
    theirs = authors.peft_merged("PveraConfig", (14, 12), shared, beside=(19, 20), r=2)
    config = {"peft_type": "PVERA"}
    return Sample("peft", parts, wanted, 2, None, set(), theirs, config=config, shared=shared, size=(14, 12))


def randlora(size):
    def make(rng):
        (outs, ins), small, large, r = size, min(size), max(size), 3
        bases = -(-small // r)
        parts = {"randlora_lambda": n(rng, r, bases), "randlora_gamma": n(rng, bases, small)}
        a, b = n(rng, r, 1, small + 2), n(rng, large + 3, bases + 1, r)
        wanted = np.zeros((large, small))
        for j in range(bases * r):
            k, base = divmod(j, bases)
            under = parts["randlora_lambda"][k, base] * a[k, 0, :small] * parts["randlora_gamma"][base]
            wanted += np.outer(b[:large, j // r, j % r], under)
        shared, config = {"randlora_A": a, "randlora_B": b}, {"peft_type": "RANDLORA"}
        wanted, theirs = wanted if outs >= ins else wanted.T, authors.randlora(size, a, b)
        return Sample("peft", parts, wanted, small, r, set(), theirs, rank=r,
            config=config, shared=shared, size=size)  # fmt: skip

    return make


def miss(rng):
    block = n(rng, 3, 14)
    wanted = np.zeros((14, 11))
    for o, i in np.ndindex(14, 11):
        wanted[o, i] = block[i % 3, o]
    theirs, config = authors.peft_merged("MissConfig", (14, 11), r=3), {"peft_type": "MISS"}
    parts = {"miss_block": block}
    return Sample("peft", parts, wanted, 3, None, set(), theirs, rank=3, config=config, size=(14, 11))


def miss_mini(rng):
    block = n(rng, 3, 7)
    wanted = np.zeros((14, 11))
    for o, i in np.ndindex(14, 11):
        wanted[o, i] = block[i % 3, o % 7]
    theirs = authors.peft_merged("MissConfig", (14, 11), r=3, mini_r=7, init_weights="mini")
    config = {"peft_type": "MISS", "init_weights": "mini"}
    parts = {"miss_block": block}
    return Sample("peft", parts, wanted, 3, None, set(), theirs, rank=3, config=config, size=(14, 11))


def miss_bat(rng):
    block, weight = n(rng, 3, 4, 4), n(rng, 12, 8).astype("f4")
    wanted = np.zeros((12, 8))
    for o, i in np.ndindex(3, 2):
        here = slice(4 * o, 4 * o + 4), slice(4 * i, 4 * i + 4)
        wanted[here] = product(weight[here], block[o]) + block[o]
    theirs = authors.peft_merged("MissConfig", (12, 8), weight=weight, r=4, init_weights="bat")
    config = {"peft_type": "MISS", "init_weights": "bat"}
    parts = {"miss_block": block}
    return Sample("peft", parts, wanted, 8, None, set(), theirs, config=config, weight=weight)


def shira(rng):
    places = rng.permutation(14 * 12)[:26]
    parts = {"shira_weight": n(rng, 26), "shira_indices": np.stack([places // 12, places % 12])}
    wanted = np.zeros((14, 12))
    for value, place in zip(parts["shira_weight"], places, strict=True):
        wanted[place // 12, place % 12] = value
    theirs, config = authors.peft_merged("ShiraConfig", (14, 12), r=1), {"peft_type": "SHIRA"}
    return Sample("peft", parts, wanted, 12, None, set(), theirs, config=config, size=(14, 12))


def fourierft(count, units):
    def make(rng):
        spectrum, places = n(rng, count), Draws(9).first(count, 14 * 12)
        wanted = np.zeros((14, 12))
        for (o, i), (c, place) in (
            (a, b) for a in np.ndindex(14, 12) for b in zip(spectrum, places, strict=True)
        ):
            wanted[o, i] += 2.5 / 168 * c * np.cos(2 * np.pi * (place // 12 * o / 14 + place % 12 * i / 12))
        settings = {"n_frequency": count, "random_loc_seed": 9, "scaling": 2.5}
        theirs, config = authors.peft_merged("FourierFTConfig", (14, 12), **settings), settings
        config = {"peft_type": "FOURIERFT", **settings}
        parts = {"fourierft_spectrum": spectrum}
        return Sample("peft", parts, wanted, units, None, set(), theirs, config=config, size=(14, 12))

    return make


def waveft(size, **more):
    def make(rng):
        (outs, ins), spectrum, half = size, n(rng, 5), np.sqrt(0.5)
        tall, wide = (side + side % 2 for side in size)
        dense, wanted = np.zeros((tall, wide)), np.zeros((tall, wide))
        for c, place in zip(spectrum, Draws(9).first(5, outs * ins), strict=True):
            dense[place // ins, place % ins] = c
        for o, i in np.ndindex(tall, wide):
            here, low, right = (
                (o // 2, i // 2),
                tall // 2,
                wide // 2,
            )  # of the bands, the lower one differs in i
            for down, across in np.ndindex(2, 2):
                sign = (-1) ** (o * across + i * down)
                wanted[o, i] += half**2 * sign * dense[here[0] + low * down, here[1] + right * across]
        settings = {"n_frequency": 5, "random_loc_seed": 9, "scaling": 2.5, **more}
        wanted = 2.5 * (wanted if more.get("use_idwt", True) else dense)[:outs, :ins]
        theirs = authors.peft_merged("WaveFTConfig", size, **settings)
        config = {"peft_type": "WAVEFT", "wavelet_family": "db1", **settings}
        parts = {"waveft_spectrum": spectrum}
        return Sample("peft", parts, wanted, 5, None, set(), theirs, config=config, size=size)

    return make
