"""A row of results, for tests of tables."""


def row(contender, seed, tuned, domain="digits"):
    facts = {"domain": domain, "regime": "shared A", "count": 8, "rank": 8, "policy": "as shipped"}
    return facts | {"contender": contender, "seed": seed, "own": [1.0, 0.5, 0.0], "tuned": tuned}
