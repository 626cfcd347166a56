"""Evaluation by running what a model writes: MultiPL-E in a sandbox, pass@k, and two models side by side."""

from moe_codegen.evaluation.comparison import Comparison as Comparison
from moe_codegen.evaluation.comparison import compare as compare
from moe_codegen.evaluation.execution.bench import execute as execute
from moe_codegen.evaluation.generate import GenerationReport as GenerationReport
from moe_codegen.evaluation.generate import generate as generate
from moe_codegen.evaluation.scores import LanguageScores as LanguageScores
from moe_codegen.evaluation.scores import pass_at_k as pass_at_k
from moe_codegen.evaluation.scores import score_folder as score_folder
from moe_codegen.evaluation.settings import ExecutionSettings as ExecutionSettings
from moe_codegen.evaluation.settings import MeasureSettings as MeasureSettings
from moe_codegen.evaluation.settings import ModelSettings as ModelSettings
from moe_codegen.evaluation.settings import ProblemSettings as ProblemSettings
from moe_codegen.evaluation.settings import RunSettings as RunSettings
from moe_codegen.evaluation.settings import SamplingSettings as SamplingSettings
