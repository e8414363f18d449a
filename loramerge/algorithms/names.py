"""The names that papers, PEFT and mergekit give to methods: understood where the mathematics is the same.

Case, dashes, underscores and spaces do not matter in any name.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from loramerge.errors import alike, printable, say

ALIASES = {  # another name of the same merge, with the options that we have by default
    "linear": ("task_arithmetic", "ta", "weighted_sum", "weight_sum", "sum", "lincomb"),
    "average": (
        "mean",
        "avg",
        "simple_average",
        "uniform",
        "model_soup",
        "soup",
        "weighted_average",
        "weighted_mean",
        "weighted_avg",
    ),
    "cat": ("concat", "concatenate", "concatenation", "lossless"),
    "svd": ("cat_svd", "concat_svd", "svd_merge"),
    "slerp": ("nuslerp",),
    "ties": ("ties_merging",),
    "dare": ("dare_linear",),
    "magnitude": ("magnitude_prune_svd",),
    "breadcrumbs": ("model_breadcrumbs",),
    "della": ("della_merging",),
    "emr": ("emr_merging", "emr_merge"),
    "karcher": ("karcher_mean", "riemannian_mean"),
    "tsv": ("tsv_m", "tsv_merge", "task_singular_vectors"),
    "iso_c": ("isotropic", "iso_common", "iso"),
    "knots": ("knots_ties",),
    "core": ("core_space", "core_ties", "core_space_ties"),
    "lego": ("lora_lego",),
    "wudi": ("wudi_merging",),
    "dc_merge": ("dc",),
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
    "adamerging": "it needs unlabelled data; the scales norm and cosine find strengths without data",
    "lorahub": "it searches weights on examples: loop over the weights of an opened session, as "
    "docs/python.md shows",
    "generalized_task_arithmetic": "it is the family of linear, ties, dare and dare_ties: name one of these",
    "flora": "clients are stacked with their shares as weights: that is cat with weights",
    "flexlora": "the mean of ΔW is cut to a rank: that is svd with the shares of clients as weights",
    "hetlora": "it averages A and B apart, as fedavg does; svd takes ranks that differ, exactly",
    "tall_masks": "they come with mergevla, which writes a mask for each task",
    "consensus_ta": "it is mergevla with consensus=2",
    "consensus_ties": "it is mergevla with rule=ties and consensus=2",
    "subspace_boosting": "it is svd with a boost",
    "swudi": "it is wudi with filter=top",
    "drm": "it is knots with ranking=shares and a rank_tol of 0.01",
    "drm_h": "it is knots with ranking=shares and a rank_tol of 0.01",
    "pcb_merging": "ties and sce let the entries of sources compete, too",
    "cabs": "it prunes sources in turn, so that no two keep an entry; magnitude prunes each by itself",
    "star": "it cuts the spectrum of each adapter and rescales the rest; tsv and level work on spectra, too",
    "cart": "it adds what each source has beyond the mean, cut to a rank; tsv and iso_cts are near it",
    "lines": "strength grows with depth: that is linear with a ramp over depth as weight",
    "lora_soups": "its weights are trained on examples; at equal ones it is average",
    "ziplora": "it trains a weight for each column with the base model; linear takes your weights",
    "k_lora": "it takes one of two adapters in every layer and step of sampling, which no one adapter does",
    "lora_rar": "a trained network tells its weights; linear takes yours",
    "gradient_fusion": "it fits features of the base model on prompts; wudi fits the weights alone",
    "localize_and_stitch": "it trains masks of what matters; magnitude and sce choose entries by their size",
    "twin_merging": "a router adds what is each source's own, and `loramerge route` makes routers",
    "widen": "it compares weights with those of the base model; dc_merge and iso_cts compare ΔW",
    "zipit": "it aligns models of different training from scratch; adapters of one base are aligned already",
    "git_rebasin": "it aligns models of different training from scratch; adapters of one base are aligned "
    "already",
    "evolutionary": "it searches options on examples: loop over an opened session, as docs/python.md shows",
    "frankenmerge": "layers of several models are not stacked here; rules give layers other weights",
    "add_difference": "A + α (B - C) is linear with the weights 1, α and -α",
    "sum_twice": "((1 - a) A + a B)(1 - b) + b C is linear with the weights (1 - a)(1 - b), a (1 - b) and b",
    "triple_sum": "(1 - a - b) A + a B + b C is linear with the weights 1 - a - b, a and b",
    "block_weighted": "it is linear with blocks, which takes the weights of supermerger and of lbw",
    "supermerger": "its sums are linear, with blocks for the weights of blocks",
    "merge_lora": "kohya's script adds A and B apart, or stacks them with --concat: that is cat",
    "svd_merge_lora": "kohya's script cuts the sum to a rank: that is svd with a rank",
    **dict.fromkeys(
        ("arrow", "smile", "spectr", "lag", "seqr"), "it is a gate, which `loramerge route` makes"
    ),
    **dict.fromkeys(
        ("mixture_of_experts", "moe", "mole", "x_lora", "phatgoose", "lora_retriever", "adapter_fusion"),
        "it chooses by the input: `loramerge route` keeps every adapter with a gate",
    ),
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
    """The answer to a word of PEFT or mergekit; None for other words.

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
    """The answer to a name that is unknown here."""
    wanted = plain(name)
    for other, told in OTHERWISE.items():
        if plain(other) == wanted:
            ours = re.sub(r"(\w+)=(\w+)", lambda found: say(found[1], found[2]), told)
            return f"There is no method {printable(repr(name))} here: {ours}."
    spelt = {plain(each): each for each in names}
    spelt |= {plain(other): own for own, others in ALIASES.items() for other in others}
    near = list(dict.fromkeys(spelt[each] for each in alike(wanted, spelt, 2, 0.7)))
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"There is no method {printable(repr(name))}.{hint} There are: {', '.join(names)}."
