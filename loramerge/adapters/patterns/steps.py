"""How many steps strangers' patterns may take."""


class Exhausted(Exception):
    """Matching took more steps than its budget holds."""


class Budget:
    """How many more steps may be taken; shared by all matches that should end together."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Exhausted
