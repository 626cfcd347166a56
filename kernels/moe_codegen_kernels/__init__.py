"""Grouped-GEMM expert kernels: knows torch, and triton when present; nothing of transformers."""

from moe_codegen_kernels.activations import ACTIVATIONS as ACTIVATIONS
from moe_codegen_kernels.cpu import describe_cpu_path as describe_cpu_path
from moe_codegen_kernels.expert_ffn import expert_ffn as expert_ffn
from moe_codegen_kernels.grouped import grouped_gemm as grouped_gemm
from moe_codegen_kernels.grouped import grouped_gemm_ragged_k as grouped_gemm_ragged_k
from moe_codegen_kernels.linear import linear as linear
from moe_codegen_kernels.packed import pack_matrices as pack_matrices
from moe_codegen_kernels.packed import packed_expert_ffn as packed_expert_ffn
from moe_codegen_kernels.packed import unpack_matrices as unpack_matrices
from moe_codegen_kernels.packed import why_not_packed as why_not_packed
from moe_codegen_kernels.quantised import quantised_expert_ffn as quantised_expert_ffn
from moe_codegen_kernels.quantised_weights import dequantise as dequantise
from moe_codegen_kernels.quantised_weights import quantise_weight as quantise_weight
from moe_codegen_kernels.records import RoutingPlan as RoutingPlan
from moe_codegen_kernels.routing import route as route
from moe_codegen_kernels.routing import routing_plan as routing_plan
from moe_codegen_kernels.rows import combine as combine
from moe_codegen_kernels.rows import gather as gather
