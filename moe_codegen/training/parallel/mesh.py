"""How the processes of a run share a model: what each holds of the experts, and of everything else.

Every process reads data of its own. One copy of the model is spread over `fsdp_size` processes, the experts of each
layer over `ep_size`; with W processes in all they stand as

    for the weights that all tokens use     copies x fsdp_size             copies = W / fsdp_size
    for the experts                         copies x shards x ep_size      shards = fsdp_size / ep_size, at least 1

The last dimension runs over neighbours, so that the experts of a layer stay on one host where they fit.
"""

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import PreTrainedConfig

from moe_codegen.errors import ConfigError
from moe_codegen.modeling import MoEConfig

COPIES, SHARDS, EXPERTS = "dp_replicate", "dp_shard", "ep"


@dataclass(frozen=True)
class ProcessLayout:
    """`world_size` processes, `fsdp_size` to a copy of the model, `ep_size` to the experts of a layer.

    With both sizes 1 every process holds the whole model, which is DDP.
    """

    world_size: int = 1
    fsdp_size: int = 1
    ep_size: int = 1

    @property
    def is_sharded(self) -> bool:
        """Whether a process holds less than the whole model."""
        return self.fsdp_size > 1 or self.ep_size > 1

    @property
    def expert_shards(self) -> int:
        """Over how many processes each expert is spread."""
        return max(1, self.fsdp_size // self.ep_size)

    def dense_mesh(self, device: str) -> DeviceMesh:
        """The processes as (copies, shards), for the weights that all tokens use; `device` is "cuda" or "cpu"."""
        copies = self.world_size // self.fsdp_size
        return init_device_mesh(device, (copies, self.fsdp_size), mesh_dim_names=(COPIES, SHARDS))

    def expert_mesh(self, device: str) -> DeviceMesh:
        """The processes as (copies, shards, ep), for the experts."""
        copies = self.world_size // (self.expert_shards * self.ep_size)
        shape = (copies, self.expert_shards, self.ep_size)
        return init_device_mesh(device, shape, mesh_dim_names=(COPIES, SHARDS, EXPERTS))

    def check(self, config: PreTrainedConfig) -> None:
        """Raise ConfigError unless the processes and the model of `config` can be shared out so."""
        world, fsdp, ep = self.world_size, self.fsdp_size, self.ep_size
        for name, size in (("fsdp_size", fsdp), ("ep_size", ep)):
            if size < 1 or world % size:
                raise ConfigError(
                    f"{name}={size} does not divide the {world} processes; "
                    f"start a multiple of it with `torchrun --nproc-per-node`, or set it to a divisor of {world}"
                )
        if fsdp % ep and ep % fsdp:
            raise ConfigError(f"of fsdp_size={fsdp} and ep_size={ep} one must divide the other")
        if ep > 1:
            self._check_experts(config)

    def _check_experts(self, config: PreTrainedConfig) -> None:
        if not isinstance(config, MoEConfig):
            raise ConfigError(f"ep_size={self.ep_size}, and a {config.model_type} model has no experts; set it to 1")
        if config.num_experts % self.ep_size:
            raise ConfigError(
                f"{config.num_experts} experts cannot be shared out evenly over ep_size={self.ep_size} processes"
            )
        for name in ("hidden_size", "moe_intermediate_size"):
            if getattr(config, name) % self.expert_shards:
                raise ConfigError(
                    f"{name}={getattr(config, name)} cannot be cut into fsdp_size / ep_size = {self.expert_shards} "
                    "even shards; choose another fsdp_size"
                )
