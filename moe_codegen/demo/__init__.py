"""A whole conversion on one machine, without the network: real source code, a small dense model, its mixture."""

from moe_codegen.demo.agreement import Agreement as Agreement
from moe_codegen.demo.agreement import compare as compare
from moe_codegen.demo.corpus import Document as Document
from moe_codegen.demo.corpus import gather_sources as gather_sources
from moe_codegen.demo.dense import small_santacoder as small_santacoder
from moe_codegen.demo.dense import train_tokenizer as train_tokenizer
from moe_codegen.demo.training import TrainingProgress as TrainingProgress
from moe_codegen.demo.training import tokenise as tokenise
from moe_codegen.demo.training import train as train
from moe_codegen.demo.workspace import Workspace as Workspace
