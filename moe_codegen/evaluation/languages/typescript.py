"""TypeScript: compiled by tsc, then run as JavaScript is."""

from dataclasses import replace

from moe_codegen.evaluation.languages.javascript import JAVASCRIPT, NODE
from moe_codegen.evaluation.languages.language import Compilation, Tool

TYPESCRIPT = replace(
    JAVASCRIPT,
    name="ts",
    title="TypeScript",
    source="program.ts",
    tools=(NODE, Tool("tsc", "node-typescript")),
    run_seconds=15,
    compilation=Compilation(("tsc", "--target", "esnext", "program.ts"), "program.js"),
)
