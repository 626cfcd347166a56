"""Checkpoints on disk: lazy safetensors reading, bounded-memory writing."""

from moe_codegen.checkpoint.reader import CheckpointReader as CheckpointReader
from moe_codegen.checkpoint.reader import TensorHeader as TensorHeader
from moe_codegen.checkpoint.reader import read_json as read_json
from moe_codegen.checkpoint.source import resolve_source as resolve_source
