"""What a method may return for a batch of M modules with R units each."""

from __future__ import annotations

from dataclasses import dataclass

from loramerge.backend import Array


@dataclass(frozen=True, eq=False, slots=True)
class Remix:
    """Merged units as combinations of the stored ones: up' = up @ P, down' = Q @ down.

    Args:
        P: (M, R, k) float64.   Q: (M, k, R) float64.
    """

    P: Array
    Q: Array

    def after(self, first: Remix) -> Remix:
        """The remix that applies `first`, then this one."""
        return Remix(first.P @ self.P, self.Q @ first.Q)

    @property
    def core(self) -> Array:
        """C = P Q (M, R, R): the merged update is up @ C @ down."""
        return self.P @ self.Q


@dataclass(frozen=True, eq=False, slots=True)
class PeakRescaled:
    """A remix whose units are then stretched to the mean peak of the units they stand for.

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


Result = Remix | PeakRescaled
