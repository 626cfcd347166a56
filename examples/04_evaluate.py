"""Let a model complete problems, run its programs in a sandbox, and set two models side by side in a report.

python examples/04_evaluate.py DENSE MIXTURE PROBLEMS OUT     PROBLEMS: a folder with MultiPL-E's humaneval-py.jsonl
python examples/04_evaluate.py --tiny                         untrained models, a problem of its own
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPTBigCodeConfig, PreTrainedTokenizerFast

from moe_codegen import upcycle
from moe_codegen.evaluation import ExecutionSettings, ProblemSettings, RunSettings, SamplingSettings
from moe_codegen.evaluation.run import run

PROMPT, TESTS = "def twice(number):\n", "def check(f):\n    assert f(2) == 4\n\ncheck(twice)\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="DENSE MIXTURE PROBLEMS OUT")
    parser.add_argument("--tiny", action="store_true", help="tiny untrained models in a temporary folder")
    arguments = parser.parse_args()
    if arguments.tiny:
        with tempfile.TemporaryDirectory() as folder:
            # Without a sandbox only because nothing these models write could do harm.
            sandbox = "bubblewrap" if shutil.which("bwrap") else "none"
            evaluate(*make_tiny(Path(folder)), Path(folder) / "out", samples=4, sandbox=sandbox)
    elif len(arguments.paths) == 4:
        evaluate(*arguments.paths, samples=20, sandbox="bubblewrap")
    else:
        parser.error("give DENSE MIXTURE PROBLEMS OUT, or --tiny")


def evaluate(dense: Path, mixture: Path, problems: Path, out: Path, samples: int, sandbox: str) -> None:
    settings = RunSettings(
        problems=ProblemSettings(dataset="humaneval", languages=("python",), problems=str(problems)),
        sampling=SamplingSettings(num_samples=samples, temperature=0.2, max_tokens=128),
        execution=ExecutionSettings(sandbox=sandbox),
        # held_out="divided/validation" adds loss, completed lines and the routing of the mixture.
    )
    # Killed and called again, it goes on where it was.
    evaluation = run({"dense": dense, "mixture": mixture}, out, settings)
    for model in evaluation.models:
        solved = model.scores[0].raw[1]
        interval = "too few problems" if solved.low is None else f"{solved.low:.1%} to {solved.high:.1%}"
        print(f"{model.name}: pass@1 {solved.value:.1%}, 95% interval: {interval}")
        for comparison in model.comparisons.values():
            print(f"  - dense: {comparison.difference:+.1%}, p: {comparison.p_text} ({comparison.test})")
    print(evaluation.report[0])


def make_tiny(folder: Path) -> tuple[Path, Path, Path]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    characters = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    characters.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, eos_token="<|endoftext|>")
    config = GPTBigCodeConfig(
        vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=256, eos_token_id=256
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    upcycle(folder / "dense", folder / "mixture", num_experts=4)
    row = {"name": "twice", "language": "py", "prompt": PROMPT, "tests": TESTS, "stop_tokens": ["\ndef"]}
    (folder / "humaneval-py.jsonl").write_text(json.dumps(row))
    return folder / "dense", folder / "mixture", folder / "humaneval-py.jsonl"


if __name__ == "__main__":
    main()
