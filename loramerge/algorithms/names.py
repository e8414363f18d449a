"""The names that papers, PEFT and mergekit give to methods: understood where the mathematics is the same.

Case, dashes, underscores and spaces do not matter in any name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from loramerge.errors import say

ALIASES = {  # another name of the same merge, with the options that we have by default
    "linear": ("task_arithmetic", "ta", "weighted_sum", "sum"),
    "average": ("mean", "avg", "simple_average", "uniform", "model_soup", "soup"),
    "cat": ("concat", "concatenate", "concatenation", "lossless"),
    "slerp": ("nuslerp",),
    "ties": ("ties_merging",),
    "dare": ("dare_linear",),
    "magnitude": ("magnitude_prune_svd",),
    "breadcrumbs": ("model_breadcrumbs",),
    "della": ("della_merging",),
    "emr": ("emr_merging", "emr_merge"),
    "karcher": ("karcher_mean", "riemannian_mean"),
    "tsv": ("tsv_m", "tsv_merge", "task_singular_vectors"),
    "iso_c": ("isotropic", "iso_common"),
    "knots": ("knots_ties",),
    "core": ("core_space", "core_ties", "core_space_ties"),
    "lego": ("lora_lego",),
    "wudi": ("wudi_merging",),
    "ctm": ("core_tucker", "tucker"),
    "fedavg": ("fedit",),
    "ffa": ("ffa_lora",),
    "fair": ("fair_lora", "lora_fair"),
}

OTHERWISE = {  # a name of something else, and how to come near to it here
    "ties_svd": "PEFT's elects on raw entries and divides by their count, and cuts to a rank: that is ties "
    "with election=raw, divisor=count and a rank. Ties as its paper has it, with a rank, is ties with a rank",
    "dare_linear_svd": "it is dare with a rank",
    "dare_ties_svd": "PEFT's elects on raw entries and divides by their count: that is dare_ties with "
    "election=raw, divisor=count and a rank",
    "magnitude_prune": "PEFT prunes A and B apart, which is no pruning of ΔW: magnitude prunes ΔW itself",
    "breadcrumbs_ties": "it is breadcrumbs with election=weighted",
    "della_linear": "it is della with election=none and divisor=none, in mergekit also with rescale=l1",
    "multislerp": "it takes one step towards the mean that karcher finds: take karcher",
    "passthrough": "an adapter alone comes back by linear; layers of several models are not stacked here",
    "arcee_fusion": "magnitude and sce choose entries by how much they say, too",
    "nearswap": "slerp goes from one adapter to another",
    "ram": "sce and ties tell shared entries from those of one source, too",
    "ramplus_tl": "sce and ties tell shared entries from those of one source, too",
    "regmean": "it needs activations of the base model; wudi is it with a Gram matrix made of the weights",
    "fisher": "it needs gradients on data; average and wudi need none",
    "adamerging": "it needs unlabelled data; scale=norm and scale=cosine find strengths without data",
    "lorahub": "it searches weights on examples: loop over the weights of an opened session, as "
    "docs/python.md shows",
    "robustmerge": "it multiplies factors of different adapters; magnitude and tsv merge ΔW itself",
}

PARAMETERS = {  # a word of PEFT's add_weighted_adapter or of mergekit -> the setting here, and what to know
    "combination_type": ("PEFT", "method", ""),
    "adapters": ("PEFT", "sources", ""),
    "adapter_name": ("PEFT", "out", ""),
    "svd_rank": ("PEFT", "rank", ""),
    "svd_clamp": ("PEFT", "", "nothing is clamped here"),
    "svd_full_matrices": ("PEFT", "", "ranks are cut exactly, without such a choice"),
    "svd_driver": ("PEFT", "", "ranks are cut exactly, without such a choice"),
    "majority_sign_method": ("PEFT", "election", "raw is PEFT's total, count its frequency"),
    "merge_method": ("mergekit", "method", ""),
    "models": ("mergekit", "sources", ""),
    "base_model": ("mergekit", "", "a merge of adapters needs no base model"),
    "lambda": ("mergekit", "scale", ""),
    "normalize": ("mergekit", "", "method average divides by the sum of the weights, linear does not"),
    "int8_mask": ("mergekit", "", "masks take a bit here"),
    "tokenizer_source": ("mergekit", "", "adapters have no tokenizer"),
}


def foreign(name: str) -> str | None:
    """What is told of a word of PEFT or mergekit; None if it is none.

    >>> print(foreign("svd_rank"))
    svd_rank is PEFT's word: here it is rank=.
    >>> print(foreign("base_model"))
    base_model is of mergekit: a merge of adapters needs no base model.
    """
    if name not in PARAMETERS:
        return None
    whose, here, more = PARAMETERS[name]
    shown = say(name).removesuffix("=")
    if not here:
        return f"{shown} is of {whose}: {more}."
    return f"{shown} is {whose}'s word: here it is {say(here)}{f' ({more})' if more else ''}."


def plain(name: str) -> str:
    """A name without what does not matter in it.

    >>> plain("Iso-C"), plain("DARE TIES")
    ('isoc', 'dareties')
    """
    return re.sub(r"[-_\s]+", "", name).lower()


def known(name: str, names: Collection[str]) -> str | None:
    """Which of these names is meant; None if none is."""
    wanted = plain(name)
    return next((each for each in names if plain(each) == wanted), None) or next(
        (own for own, others in ALIASES.items() if wanted in map(plain, others)), None
    )


def unknown(name: str, names: Collection[str]) -> str:
    """What is told of a name that is none of these."""
    wanted = plain(name)
    for other, told in OTHERWISE.items():
        if plain(other) == wanted:
            return f"There is no method {name!r} here: {told}."
    spelt = {plain(each): each for each in names}
    spelt |= {plain(other): own for own, others in ALIASES.items() for other in others}
    near = list(
        dict.fromkeys(spelt[each] for each in difflib.get_close_matches(wanted, spelt, n=2, cutoff=0.7))
    )
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"There is no method {name!r}.{hint} There are: {', '.join(names)}."
