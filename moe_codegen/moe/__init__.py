"""The sparse layer: router, experts, and the losses that keep them balanced."""

from moe_codegen.moe.experts import Experts as Experts
from moe_codegen.moe.implementation import register_experts_implementation as register_experts_implementation
from moe_codegen.moe.layer import SparseMoE as SparseMoE
from moe_codegen.moe.losses import load_balancing_loss as load_balancing_loss
from moe_codegen.moe.losses import router_z_loss as router_z_loss
from moe_codegen.moe.packing import is_packed as is_packed
from moe_codegen.moe.packing import pack_experts as pack_experts
from moe_codegen.moe.packing import unpack_experts as unpack_experts
from moe_codegen.moe.recording import RoutingRecorder as RoutingRecorder
from moe_codegen.moe.router import Routing as Routing
from moe_codegen.moe.router import TopKRouter as TopKRouter
