"""Training: dense models and experts, the mixture of them, and what one sees while they learn."""

from moe_codegen.training.run import train as train
from moe_codegen.training.runfile import read_run as read_run
from moe_codegen.training.settings import DenseSettings as DenseSettings
from moe_codegen.training.settings import ExpertSettings as ExpertSettings
from moe_codegen.training.settings import MixSettings as MixSettings
