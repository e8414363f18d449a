"""What a method may return for a batch of M modules with R units each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loramerge.arrays.backend import Array


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Remix:
    """Merged units as combinations of the stored ones: up' = up @ P, down' = Q @ down.

    Args:
        P: (M, R, k) float64.   Q: (M, k, R) float64.
        whole: (M,) ‖·‖² of what the method makes before it is cut to a rank, if that is more.
        cut: (M,) the part of `whole` that the rank cost.
        facts: name -> (M,) what else the method reports.
    """

    P: Array
    Q: Array
    whole: Array | None = None
    cut: Array | None = None
    facts: Mapping[str, Array] = field(default_factory=dict)

    def after(self, first: Remix) -> Remix:
        """The remix that applies `first`, then this one."""
        return Remix(first.P @ self.P, self.Q @ first.Q, self.whole, self.cut, self.facts)

    @property
    def core(self) -> Array:
        """C = P Q (M, R, R): the merged update is up @ C @ down."""
        return self.P @ self.Q


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class PeakRescaled:
    """A remix whose units are then stretched to the mean peak of the units that they replace.

    The peak of a unit is its largest entry over both halves. It is not in the Grams, so it is measured
    when the factors are at hand.

    Args:
        remix: the centroids.   shares: (M, R, k) what each unit gives to a centroid.
        left, right: (M, R) factors that make the clustered units of the stored ones.
        gain: (M,) factor of ΔW after the stretching.
    """

    remix: Remix
    shares: Array
    left: Array
    right: Array
    gain: Array


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Fit:
    """One merged module by its own factors.

    Args:
        up: (out, k) and down: (k, in), float64.
        whole: ‖·‖² of what the method makes.   cut: ‖that − up @ down‖².
        facts: name -> what else the method reports.
        masks: name of a source -> (out, ⌈in/8⌉) uint8, the entries of the merge that it wants back.
    """

    up: Array
    down: Array
    whole: float
    cut: float
    facts: Mapping[str, float] = field(default_factory=dict)
    masks: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Fitted:
    """A merge that is no remix of the units: thresholds on entries of ΔW, for example.

    Args:
        make: the factors of module m (0 … M-1) of the batch, computed each time they are asked for.
        dense: the merge (out, in) of module m before it is fitted to a rank, where that is how it is made.
    """

    make: Callable[[int], Fit]
    dense: Callable[[int], Array] | None = None


Result = Remix | PeakRescaled | Fitted
