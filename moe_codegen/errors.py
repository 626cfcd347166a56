"""The exceptions a caller may want to catch; each message says what was given, what was expected, what to do."""


class MoECodegenError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(MoECodegenError, ValueError):
    """Settings that cannot hold, alone or together."""


class CheckpointError(MoECodegenError):
    """A source checkpoint that cannot be used: unreadable, incomplete, damaged, quantised or of an unknown kind."""


class MismatchError(CheckpointError):
    """Checkpoints that were to be joined do not share one base."""


class OutputError(MoECodegenError, OSError):
    """A target that cannot be written: not empty, read-only, or too little space."""


class ResumeError(MoECodegenError):
    """A started conversion that cannot go on, because its source or its settings have changed since."""
