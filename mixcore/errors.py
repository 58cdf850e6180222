"""What mixcore raises: all `MixcoreError`, and builtin ones where they exist."""


class MixcoreError(Exception):
    """Base of everything that mixcore raises on purpose."""


class ArgumentError(MixcoreError, ValueError):
    """An argument has a value that cannot be used; the message names it and shows the value."""


class ArgumentTypeError(MixcoreError, TypeError):
    """An argument has the wrong type; the message names it and shows what came instead."""


class OutOfRangeError(MixcoreError, IndexError):
    """A sequence or sample number lies outside what it is asked of; the message shows both."""


class LedgerError(MixcoreError):
    """A ledger is damaged, belongs to another run, or would be contradicted by an append."""


class CapError(LedgerError, ArgumentError):
    """A position lies beyond the end of the run: caps leave nothing to draw there."""


class DistanceError(MixcoreError, ValueError):
    """A look-up in a sequential order is more than 10^9 steps from the nearest checkpoint."""


class DataError(MixcoreError, ValueError):
    """A data file (`.bin`, `.idx`) is damaged or is not what its header says."""


class DeviceError(MixcoreError, RuntimeError):
    """A device was asked for that this installation or this machine does not have."""
