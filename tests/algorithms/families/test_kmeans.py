"""k-means on inner products does what scikit-learn's does on the points themselves."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from loramerge.algorithms.families.kmeans import centred, cluster, lloyd, seeded


def gram(points):
    """Kernel and live mask of one module, as a batch of one."""
    return (points @ points.T)[None], np.ones((1, len(points)), bool)


def at(points_count, chosen):
    """Shares (1, R, k) of centres that lie on these points."""
    return (np.arange(points_count)[:, None] == np.asarray(chosen)).astype(float)[None]


def found_by_us(points, shares, live=None):
    kernel, all_live = gram(points)
    live = all_live if live is None else live[None]
    return lloyd(centred(kernel, live), live, shares)[0][0]


def found_by_sklearn(points, shares, live=None):
    centres = shares[0].T @ points
    peer = KMeans(len(centres), init=centres, n_init=1, tol=0, algorithm="lloyd")
    return peer.fit(points, sample_weight=live).labels_


def partition(labels):
    """The clusters without their numbers."""
    return {frozenset(np.flatnonzero(labels == c)) for c in np.unique(labels)}


def twins(rng, count, dims):
    """Points of which a third are copies of others."""
    points = rng.standard_normal((count, dims))
    points[: count // 3] = points[count // 3 : 2 * (count // 3)]
    return points


CLOUDS = {
    "spread": lambda rng: rng.standard_normal((20, 6)),
    "many": lambda rng: rng.standard_normal((60, 5)),
    "duplicates": lambda rng: twins(rng, 60, 4),
    "far from the origin": lambda rng: 100.0 + rng.standard_normal((40, 5)),
    "one coordinate dominates": lambda rng: rng.standard_normal((40, 6)) * [50, 1, 1, 1, 1, 0.1],
    "blobs": lambda rng: (
        5 * rng.standard_normal((6, 3))[rng.integers(0, 6, 50)] + rng.standard_normal((50, 3))
    ),
    "more dimensions than points": lambda rng: rng.standard_normal((12, 300)),
}
every_cloud = pytest.mark.parametrize("cloud", CLOUDS.values(), ids=CLOUDS)


@every_cloud
@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_from_the_same_centres_the_labels_are_those_of_scikit_learn(cloud, k):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        points = cloud(rng)
        first = np.unique(points, axis=0, return_index=True)[1]
        shares = at(len(points), rng.choice(first, k, replace=False))
        assert np.array_equal(found_by_us(points, shares), found_by_sklearn(points, shares))


@every_cloud
@pytest.mark.parametrize("k", [2, 5])
def test_dead_units_are_samples_of_weight_zero(cloud, k):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        points, live = cloud(rng), rng.random(len(cloud(rng))) < 0.7
        live = live[: len(points)]
        distinct = np.flatnonzero(live)[np.unique(points[live], axis=0, return_index=True)[1]]
        shares = at(len(points), rng.choice(distinct, k, replace=False))
        ours = found_by_us(points, shares, live)
        assert np.array_equal(ours[live], found_by_sklearn(points, shares, live.astype(float))[live])
        assert (ours[~live] == -1).all()


def deserted(rng, points, k, lost):
    """Shares of k centres, `lost` of which are so far out that no point is theirs."""
    shares = at(len(points), rng.choice(len(points), k, replace=False))
    for c in range(lost):
        shares[0, :, c] = 0
        b = rng.integers(len(points))
        a = ((points - points[b]) ** 2).sum(axis=1).argmax()
        shares[0, a, c], shares[0, b, c] = 50.0, -49.0
    return shares


@every_cloud
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_an_empty_cluster_takes_the_points_that_scikit_learn_gives_it(cloud, lost):
    """With several empty at once scikit-learn hands out the farthest points in no fixed order, so there
    the clusters are compared without their numbers."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        points = np.unique(cloud(rng), axis=0)
        shares = deserted(rng, points, 6, lost)
        centres = shares[0].T @ points
        nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        assert set(range(lost)).isdisjoint(nearest)
        ours, theirs = found_by_us(points, shares), found_by_sklearn(points, shares)
        assert partition(ours) == partition(theirs)
        assert lost > 1 or np.array_equal(ours, theirs)


@pytest.mark.parametrize("k", [4, 5, 9, 30])
def test_more_clusters_than_distinct_units_leave_some_unused(k):
    """Three places, ten units at each: three clusters, exactly."""
    rng = np.random.default_rng(0)
    places = rng.standard_normal((3, 4))
    kernel, live = gram(np.repeat(places, 10, axis=0))
    labels = cluster(kernel, live, k, ("m",), seed=0, restarts=2)[0]
    assert partition(labels) == {frozenset(range(i, i + 10)) for i in (0, 10, 20)}


def test_more_centres_than_distinct_units_end_without_nan():
    points = np.repeat(np.random.default_rng(0).standard_normal((3, 4)), 4, axis=0)
    shares = at(len(points), [0, 1, 2, 4, 8])
    with np.errstate(all="raise"):
        ours = found_by_us(points, shares)
    assert partition(ours) == {frozenset(range(i, i + 4)) for i in (0, 4, 8)}


def many(count=6, size=30):
    rng = np.random.default_rng(3)
    points = rng.standard_normal((count, size, 5))
    live = rng.random((count, size)) < 0.8
    live[0] = True
    live[-1] = count == 1
    return points @ points.swapaxes(1, 2), live, tuple(f"module {m}" for m in range(count))


def test_a_module_gets_the_same_labels_in_any_batch():
    kernel, live, names = many()
    together = cluster(kernel, live, 5, names, seed=1, restarts=3)
    for m in range(len(names)):
        alone = cluster(kernel[m : m + 1], live[m : m + 1], 5, names[m : m + 1], seed=1, restarts=3)
        assert np.array_equal(together[m], alone[0])
    back = cluster(kernel[::-1], live[::-1], 5, names[::-1], seed=1, restarts=3)
    assert np.array_equal(together, back[::-1])


def test_a_module_gets_the_same_labels_with_dead_units_behind_its_own():
    kernel, live, names = many()
    padded = np.pad(kernel, ((0, 0), (0, 7), (0, 7)))
    labels = cluster(padded, np.pad(live, ((0, 0), (0, 7))), 5, names, seed=1, restarts=2)
    assert np.array_equal(labels[:, :30], cluster(kernel, live, 5, names, seed=1, restarts=2))
    assert (labels[:, 30:] == -1).all()


def test_the_name_of_a_module_and_the_seed_both_choose_its_random_numbers():
    kernel, live, _ = many(1)
    runs = {
        (name, seed): tuple(cluster(kernel, live, 5, (name,), seed, 1)[0])
        for name in ("a", "b", "c")
        for seed in (0, 1, 2)
    }
    assert len(set(runs.values())) > 3
    assert runs["a", 0] == tuple(cluster(kernel, live, 5, ("a",), 0, 1)[0])


def test_nothing_live_is_nothing_clustered():
    kernel, live = gram(np.zeros((4, 2)))
    labels = cluster(kernel, live & False, 3, ("m",), seed=0, restarts=2)
    assert (labels == -1).all()


def places(shares):
    """The units that were drawn as centres."""
    return [int(column.argmax()) for column in shares[0].T if column.any()]


EXTREMES = {"lowest": 0.0, "highest": np.nextafter(1.0, 0.0)}


@pytest.mark.parametrize("drawn", [*EXTREMES, "random"])
def test_seeding_draws_every_distinct_live_unit_once_and_no_other(drawn):
    """Units 0-9: of three places; dead ones at 3 and 9 are at places of their own, far out."""
    rng = np.random.default_rng(4)
    where = rng.standard_normal((3, 4))[[0, 1, 1, 0, 2, 2, 0, 1, 2, 0]]
    where[[3, 9]] = 1e8 * rng.standard_normal((2, 4))
    kernel, live = gram(where)
    live[0, [3, 9]] = False
    for seed in range(20):
        uniforms = np.random.default_rng(seed).random((1, 5, 3))
        uniforms = np.full_like(uniforms, EXTREMES.get(drawn, 0)) if drawn in EXTREMES else uniforms
        chosen = places(seeded(kernel, live, 5, uniforms))
        assert len(chosen) == 3
        assert live[0, chosen].all()
        assert len({tuple(where[i]) for i in chosen}) == 3


def test_seeding_takes_the_trial_that_leaves_least():
    """Points on a line at 0, 1, 10, 11, first centre 0: of the trials 1 and 10 the second is better."""
    kernel, live = gram(np.array([[0.0], [1.0], [10.0], [11.0]]))
    total = 1 + 100 + 121
    uniforms = np.zeros((1, 2, 2))
    uniforms[0, 1] = [0.5 / total, 50 / total]  # falls on 1, on 10
    assert places(seeded(kernel, live, 2, uniforms)) == [0, 2]


def test_ties_go_to_the_first_whatever_the_rounding():
    """Orthonormal points are all equally far from each other."""
    kernel, live = gram(np.eye(6))
    noise = 1e-15 * np.random.default_rng(5).standard_normal((20, 6, 6))
    runs = [cluster(kernel + n + n.T, live, 3, ("m",), seed=0, restarts=4)[0] for n in noise]
    assert len({tuple(labels) for labels in runs}) == 1


@every_cloud
@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_inertia_is_the_sum_of_squared_distances_to_the_means(cloud, k):
    rng = np.random.default_rng(6)
    points = cloud(rng)
    kernel, live = gram(points)
    kernel = centred(kernel, live)
    labels, inertia = lloyd(kernel, live, seeded(kernel, live, k, rng.random((1, k, 3))))
    means = [points[labels[0] == c].mean(axis=0) for c in np.unique(labels)]
    direct = sum(((points[labels[0] == c] - mean) ** 2).sum() for c, mean in enumerate(means))
    assert inertia[0] == pytest.approx(direct, rel=1e-9)


def test_more_restarts_never_loosen_the_clusters():
    kernel, live, names = many()

    def spread(labels):
        """Σ‖x − mean‖² of a module, from its kernel."""
        each = np.where(labels == -1, 0.0, kernel_diagonal)
        means = [
            kernel[m][np.ix_(labels[m] == c, labels[m] == c)].sum() / (labels[m] == c).sum()
            for m in range(len(names))
            for c in np.unique(labels[m][labels[m] >= 0])
        ]
        return each.sum() - sum(means)

    kernel_diagonal = kernel.diagonal(axis1=1, axis2=2)
    spreads = [spread(cluster(kernel, live, 5, names, seed=0, restarts=n)) for n in (1, 2, 4, 8, 16)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < spreads[0]


def test_by_hand():
    """0, 1, 9, 10 on a line from centres 0 and 1: {0}, {1, 9, 10}, then means 0 and 20/3: {0, 1}, {9, 10}."""
    kernel, live = gram(np.array([[0.0], [1.0], [9.0], [10.0]]))
    labels, inertia = lloyd(kernel, live, at(4, [0, 1]))
    assert labels[0].tolist() == [0, 0, 1, 1]
    assert inertia[0] == pytest.approx(4 * 0.5**2)
