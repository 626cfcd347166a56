"""What is added to the language-model loss so that the router uses all experts, and stays finite.

Dimensions: T tokens, E experts, K experts per token.
"""

import torch
from torch.nn import functional as F


def load_balancing_loss(
    logits_TE: torch.Tensor, top_k: int, token_weights_T: torch.Tensor | None = None
) -> torch.Tensor:
    """`E sum_e f_e P_e`: Switch Transformer, arXiv 2101.03961, eq. 4-6, for one layer.

    `f_e` is the share of the (token, choice) pairs that went to expert e, `P_e` the mean probability the router gave
    it. Because the shares are divided by K, uniform routing gives 1 for every K; all tokens on one expert give E. Less
    than 1 is possible where the experts chosen most have the smaller mean probability.

    Args:
        logits_TE: (T, E) router logits.
        top_k: K.
        token_weights_T: (T,) 1 for a token, 0 for padding; None counts all.

    Returns:
        A scalar, fp32. 0 where every token is padding.
    """
    probabilities_TE = logits_TE.float().softmax(dim=-1)
    num_experts = logits_TE.shape[-1]
    chosen_TE = F.one_hot(probabilities_TE.topk(top_k, dim=-1).indices, num_experts).sum(dim=1).float()
    share_E = _mean_over_tokens(chosen_TE, token_weights_T) / top_k
    probability_E = _mean_over_tokens(probabilities_TE, token_weights_T)
    return num_experts * (share_E * probability_E).sum()


def router_z_loss(logits_TE: torch.Tensor, token_weights_T: torch.Tensor | None = None) -> torch.Tensor:
    """`mean_t (log sum_e exp logits_te)^2`: ST-MoE, arXiv 2202.08906, eq. 5, for one layer.

    Arguments and return value as for `load_balancing_loss`.
    """
    return _mean_over_tokens(logits_TE.float().logsumexp(dim=-1).square(), token_weights_T)


def _mean_over_tokens(values_T: torch.Tensor, token_weights_T: torch.Tensor | None) -> torch.Tensor:
    if token_weights_T is None:
        return values_T.mean(dim=0)
    weights_T = token_weights_T.to(values_T.dtype)
    # Not a matrix product: autocast would round that to bf16.
    weighted = (weights_T.view(-1, *[1] * (values_T.dim() - 1)) * values_T).sum(dim=0)
    return weighted / weights_T.sum().clamp(min=1)
