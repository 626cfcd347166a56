"""The router: which experts take a token, and with which weights.

Dimensions: T tokens, D model, E experts, K experts per token.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from moe_codegen_kernels import route


class Routing(NamedTuple):
    """What the router decided.

    Attributes:
        logits_TE: (T, E) fp32, with the noise that was added to them.
        weights_TK: (T, K) fp32, the weight of each chosen expert's output.
        ids_TK: (T, K) int64, the chosen experts, the strongest first.
    """

    logits_TE: torch.Tensor
    weights_TK: torch.Tensor
    ids_TK: torch.Tensor


class TopKRouter(nn.Module):
    """Softmax over all experts, the K largest, renormalised to sum to one: Mixtral's order (arXiv 2401.04088, eq. 4).

    `norm_topk_prob=False` keeps the softmax's own values; with K = 1 that is Switch routing (arXiv 2101.03961,
    eq. 1-2). `router_jitter_noise` multiplies the router's input by U(1 - eps, 1 + eps) in training, as Switch does.
    `router_type="noisy_top_k"` adds learned Gaussian noise to the logits in training (arXiv 1701.06538, eq. 3-5).
    `router_logit_scale` lambda > 0 normalises the logits over the experts, `lambda (z - mean) / std` (Skywork-MoE,
    arXiv 2406.06563, section 3.2), so that how sharply it chooses does not depend on how large they have grown.
    `language_routing` "prior" adds a learned row for the token's language to the logits; "oracle" leaves only the
    experts of that language. Both wait for `language_ids_T`, and leave tokens without a language alone.

    Logits, softmax and weights are fp32 whatever the model's dtype: experts are chosen by small differences.

    Attributes:
        language_ids_T: (T,) int64, the place in `expert_names` of each token's language, below 0 for none; the model
            sets it before every pass, since transformers' layers hand their FFN hidden states alone.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        experts, width = config.num_experts, config.hidden_size
        self.top_k = config.num_experts_per_tok
        self.renormalise = config.norm_topk_prob
        self.jitter = config.router_jitter_noise
        self.logit_scale = config.router_logit_scale
        self.granularity = config.expert_granularity
        self.language_routing = config.language_routing
        self.language_ids_T: torch.Tensor | None = None
        self.weight = nn.Parameter(torch.empty(experts, width))
        self.noise_weight = nn.Parameter(torch.empty(experts, width)) if config.router_type == "noisy_top_k" else None
        self.language_prior = (
            nn.Parameter(torch.empty(len(config.expert_names), experts)) if config.language_routing == "prior" else None
        )

    def forward(self, hidden_TD: torch.Tensor) -> Routing:
        """Route tokens `hidden_TD`: (T, D)."""
        x_TD = hidden_TD.float()
        if self.training and self.jitter > 0:
            x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.jitter, 1 + self.jitter)
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD, self.weight.float())
            if self.logit_scale > 0:
                logits_TE = self.logit_scale * F.layer_norm(logits_TE, logits_TE.shape[-1:])
            if self.training and self.noise_weight is not None:
                # eq. 4: H(x)_i = (x W_g)_i + N(0, 1) softplus((x W_noise)_i). Keeping the top K before the softmax
                # (eq. 3, 5) gives the same weights as renormalising after it.
                deviation_TE = F.softplus(F.linear(x_TD, self.noise_weight.float()))
                logits_TE = logits_TE + torch.randn_like(logits_TE) * deviation_TE
        if self.language_ids_T is not None:
            logits_TE = self._by_language(logits_TE, self.language_ids_T.to(logits_TE.device))
        return Routing(logits_TE, *route(logits_TE, self.top_k, self.renormalise))

    def _by_language(self, logits_TE: torch.Tensor, language_ids_T: torch.Tensor) -> torch.Tensor:
        known_T1 = language_ids_T[:, None] >= 0
        if self.language_prior is not None:
            prior_TE = F.embedding(language_ids_T.clamp(min=0), self.language_prior.float())
            return logits_TE + prior_TE * known_T1
        own_TE = own_expert(language_ids_T, logits_TE.shape[-1], self.granularity)
        return logits_TE.masked_fill(known_T1 & ~own_TE, -torch.inf)


def own_expert(language_ids_N: torch.Tensor, num_experts: int, granularity: int = 1) -> torch.Tensor:
    """(N, E) bool: whether expert e is one of the `granularity` pieces of the FFN that bears language n's name."""
    experts_E = torch.arange(num_experts, device=language_ids_N.device)
    return experts_E // granularity == language_ids_N[:, None]
