"""One model and many processes: data parallelism, FSDP2, expert parallelism, and checkpoints that any number reads."""

from moe_codegen.training.parallel.checkpoint import merge_checkpoint as merge_checkpoint
from moe_codegen.training.parallel.checkpoint import whole_weights as whole_weights
from moe_codegen.training.parallel.mesh import ProcessLayout as ProcessLayout
from moe_codegen.training.parallel.shard import shard_model as shard_model
from moe_codegen.training.parallel.trainer import ShardedTrainer as ShardedTrainer
