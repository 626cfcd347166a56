"""One small file a language: what it is run with, when it ends, how it fails."""

from moe_codegen.evaluation.languages.language import Language as Language
from moe_codegen.evaluation.languages.registry import LANGUAGES as LANGUAGES
from moe_codegen.evaluation.languages.registry import check_tools as check_tools
from moe_codegen.evaluation.languages.registry import find_language as find_language
