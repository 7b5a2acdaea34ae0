"""Exceptions raised at the package's boundaries.

Every error a user can cause derives from :class:`SnnCoreError`, so that the command line can turn it into a message
and an exit code, while anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class SnnCoreError(Exception):
    """Base class of all errors that are explained to the user. ``exit_code`` is what the command line exits with."""

    exit_code = 1


class ArgumentError(SnnCoreError, ValueError):
    """An argument has a value, shape, dtype or layout that is not allowed."""

    exit_code = 2


class ConfigError(SnnCoreError, ValueError):
    """A configuration file or override names an unknown key, or has a value of the wrong type."""

    exit_code = 2


class DataError(SnnCoreError, ValueError):
    """A data source is missing, empty, or does not hold what its format promises."""

    exit_code = 3


class CheckpointError(SnnCoreError, ValueError):
    """A checkpoint or product file is missing, corrupt, of another version, or does not fit the model."""

    exit_code = 4


class BackendUnavailableError(SnnCoreError, RuntimeError):
    """The requested kernel backend cannot run on this machine or for this input."""

    exit_code = 5


class NonFiniteError(SnnCoreError, ArithmeticError):
    """A loss, gradient or parameter became NaN or infinite."""

    exit_code = 6


class StorageError(SnnCoreError, OSError):
    """A file could not be written (for example: disk full). The previous file, if any, is intact."""

    exit_code = 7


class InterruptedRunError(SnnCoreError):
    """A long job was interrupted at a safe point; its state is saved and it can be resumed."""

    exit_code = 130
