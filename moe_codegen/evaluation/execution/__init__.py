"""Programs compiled, run and judged, several at a time."""

from moe_codegen.evaluation.execution.executor import Executor as Executor
from moe_codegen.evaluation.execution.outcome import Kind as Kind
from moe_codegen.evaluation.execution.outcome import Outcome as Outcome
from moe_codegen.evaluation.execution.outcome import Submission as Submission
