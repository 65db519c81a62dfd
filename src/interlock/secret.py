"""Text that must not be shown."""

from __future__ import annotations


class Secret(str):
    """A value that shows itself as ``***`` wherever it is printed, encoded or pickled.

    It is a string, so that every sink that knows text knows what to print. Only :meth:`reveal`
    gives the value.
    """

    __slots__ = ("_value",)
    _value: str

    def __new__(cls, value: str) -> Secret:
        secret = super().__new__(cls, "***")
        secret._value = value
        return secret

    def reveal(self) -> str:
        """The value itself, for the one place that sends or compares it."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return Secret, ("***",)
