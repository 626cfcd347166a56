"""The CPU kernels: the same road as on a GPU, in torch and one compiled product."""

from moe_codegen_kernels.cpu.compiled import describe_cpu_path as describe_cpu_path
from moe_codegen_kernels.cpu.layer import expert_ffn as expert_ffn
from moe_codegen_kernels.cpu.layer import expert_ffn_backward as expert_ffn_backward
from moe_codegen_kernels.cpu.parts import combine as combine
from moe_codegen_kernels.cpu.parts import combine_backward as combine_backward
from moe_codegen_kernels.cpu.parts import gather as gather
from moe_codegen_kernels.cpu.parts import grouped_gemm as grouped_gemm
from moe_codegen_kernels.cpu.parts import grouped_gemm_ragged_k as grouped_gemm_ragged_k
from moe_codegen_kernels.cpu.routing import route as route
from moe_codegen_kernels.cpu.routing import routing_plan as routing_plan
