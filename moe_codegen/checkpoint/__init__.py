"""Checkpoints on disk: lazy safetensors reading, bounded-memory writing."""

from moe_codegen.checkpoint.hub import commit_of as commit_of
from moe_codegen.checkpoint.reader import CheckpointReader as CheckpointReader
from moe_codegen.checkpoint.reader import TensorHeader as TensorHeader
from moe_codegen.checkpoint.reader import read_config as read_config
from moe_codegen.checkpoint.reader import read_json as read_json
from moe_codegen.checkpoint.reader import refuse_adapters as refuse_adapters
from moe_codegen.checkpoint.source import resolve_source as resolve_source
from moe_codegen.checkpoint.staging import StagedFolder as StagedFolder
from moe_codegen.checkpoint.staging import free_bytes as free_bytes
from moe_codegen.checkpoint.staging import resolve_target as resolve_target
from moe_codegen.checkpoint.tokenizer import encode_text as encode_text
from moe_codegen.checkpoint.tokenizer import encode_with_offsets as encode_with_offsets
from moe_codegen.checkpoint.tokenizer import load_tokenizer as load_tokenizer
from moe_codegen.checkpoint.writer import Shard as Shard
from moe_codegen.checkpoint.writer import TensorToWrite as TensorToWrite
from moe_codegen.checkpoint.writer import into_shards as into_shards
from moe_codegen.checkpoint.writer import sha256_of as sha256_of
from moe_codegen.checkpoint.writer import write_index as write_index
from moe_codegen.checkpoint.writer import write_shard as write_shard
