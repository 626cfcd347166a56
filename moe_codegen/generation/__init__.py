"""Code completion with dense and mixture checkpoints alike: loading, prompts, streaming, routing."""

from moe_codegen.generation.completion import Completion as Completion
from moe_codegen.generation.completion import Token as Token
from moe_codegen.generation.completion import complete as complete
from moe_codegen.generation.loading import check_model as check_model
from moe_codegen.generation.loading import load_model as load_model
from moe_codegen.generation.plain import generate_plainly as generate_plainly
from moe_codegen.generation.prompt import Sentinels as Sentinels
from moe_codegen.generation.prompt import encode_prompt as encode_prompt
from moe_codegen.generation.prompt import find_sentinels as find_sentinels
from moe_codegen.generation.routing import shares_of_experts as shares_of_experts
