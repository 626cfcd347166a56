"""How documents become sequences, as typed settings."""

import math
from dataclasses import dataclass

from moe_codegen.errors import ConfigError
from moe_codegen.languages import canonical_language
from moe_codegen.settings import check_between, check_least, setting

_LEAST_TOKENS = 2  # a sequence predicts something
_LEAST_FIM_TOKENS = 8  # three sentinels, end-of-text, and a character, which may be four tokens


@dataclass(frozen=True)
class PackSettings:
    """How documents become sequences."""

    tokenizer: str = setting("", "folder with tokenizer.json", is_path=True)
    sequence_length: int = setting(2048, "tokens a sequence")
    fim_rate: float = setting(0.5, "share of the documents, or pieces of long ones, rearranged for fill-in-the-middle")
    spm_rate: float = setting(0.5, "share of those in the order suffix, prefix, middle")
    weights: tuple[str, ...] = setting((), "LANGUAGE=WEIGHT; none: by temperature")
    temperature: float = setting(1.0, "1 keeps the proportions of the data, more nears equal parts")
    tokens: int | None = setting(
        None, "tokens in all, documents repeated as needed, rearranged alike each time; not given: none is repeated"
    )
    seed: int = setting(0, "order, fill-in-the-middle and choice of documents")

    def __post_init__(self) -> None:
        check_between(self, 0, 1, "fim_rate", "spm_rate")
        least = _LEAST_FIM_TOKENS if self.fim_rate else _LEAST_TOKENS
        if self.sequence_length < least:
            raise ConfigError(f"sequence_length={self.sequence_length} should be at least {least} tokens")
        check_least(self, 1, "tokens")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} should be positive")
        self.weight_of  # noqa: B018 (raises)

    @property
    def weight_of(self) -> dict[str, float]:
        """Language -> weight, as `weights` says."""
        found: dict[str, float] = {}
        for pair in self.weights:
            name, _, value = pair.partition("=")
            language = canonical_language(name)
            try:
                weight = float(value)
            except ValueError:
                raise ConfigError(f"weights: {pair} should be LANGUAGE=WEIGHT, such as python=2") from None
            if not 0 < weight < math.inf:
                raise ConfigError(f"weights: {pair} should be positive; a language that is not named is left out")
            if language in found:
                raise ConfigError(f"weights: {language} has two; give one")
            found[language] = weight
        return found
