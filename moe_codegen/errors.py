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


class SourceError(MoECodegenError):
    """Data that cannot be read: nothing there, unknown format, or damaged beyond single rows."""


class ColumnError(SourceError):
    """A column that is missing or of the wrong type; the message names column, expected, found and file."""


class GatedDatasetError(SourceError):
    """A dataset on the Hub that needs a signed-in user who has accepted its terms."""


class TokenizerError(MoECodegenError):
    """A tokenizer that cannot do what was asked of it, such as fill-in-the-middle without sentinels."""


class WorkerError(MoECodegenError):
    """A worker process that died, or failed on an input that it names."""


class ProblemError(MoECodegenError):
    """Evaluation problems that cannot be read, are missing, or do not fit what is asked of them."""


class ResultError(MoECodegenError):
    """A file of completions or results that is damaged, missing, or made from something else; it is named."""


class ToolchainError(MoECodegenError):
    """A compiler or interpreter that is not installed, or not where the sandbox can show it; its package is named."""


class SandboxError(MoECodegenError):
    """A sandbox that cannot be built on this machine, or that leaks."""


class InfrastructureError(MoECodegenError):
    """A program could not be judged: what failed is around it, not in it."""


class NonFiniteError(MoECodegenError, ArithmeticError):
    """Training whose loss or weights are no longer finite; the message names the step and the last good checkpoint."""
