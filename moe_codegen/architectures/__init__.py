"""The dense families as data: where each keeps its FFN, and how each published layout's keys map."""

from moe_codegen.architectures.architecture import Architecture as Architecture
from moe_codegen.architectures.architecture import FeedForward as FeedForward
from moe_codegen.architectures.dense import DenseCheckpoint as DenseCheckpoint
from moe_codegen.architectures.layout import Layout as Layout
from moe_codegen.architectures.registry import ARCHITECTURES as ARCHITECTURES
from moe_codegen.architectures.registry import MIXTURE_PREFIX as MIXTURE_PREFIX
from moe_codegen.architectures.registry import is_known as is_known
from moe_codegen.architectures.registry import is_mixture as is_mixture
