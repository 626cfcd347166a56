"""Turn a dense checkpoint into a mixture of experts, check it, and write code with it.

python examples/01_upcycle.py SOURCE OUT          a checkpoint of yours: SantaCoder, Phi-2, StarCoder2, Llama, ...
python examples/01_upcycle.py --tiny              a tiny random one, made on the spot
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPTBigCodeConfig

from moe_codegen import MoEForCausalLM, extract, upcycle
from moe_codegen.checkpoint import load_tokenizer
from moe_codegen.upcycle import verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="dense checkpoint: a folder or a hub id")
    parser.add_argument("out", nargs="?", type=Path, help="folder to create")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model in a temporary folder")
    arguments = parser.parse_args()
    if arguments.tiny:
        with tempfile.TemporaryDirectory() as folder:
            run(make_tiny(Path(folder) / "dense"), Path(folder) / "moe")
    elif arguments.source and arguments.out:
        run(arguments.source, arguments.out)
    else:
        parser.error("give SOURCE and OUT, or --tiny")


def run(source: str | Path, out: Path) -> None:
    # Eight copies of each FFN, two of which take each token. `dry_run=True` would only print what would happen.
    report = upcycle(source, out, num_experts=8, top_k=2)
    print(f"{report.plan.num_parameters:,} parameters in {out}")

    # The mixture still computes what the dense model did, layer by layer.
    check = verify(source, out)
    print(f"largest relative error {check.max_relative_error:.1e}, equal: {check.passed}")

    # It is a transformers model like any other.
    model = MoEForCausalLM.from_pretrained(out)
    tokenizer = load_tokenizer(out, model.config)
    prompt = tokenizer("def fibonacci(n):", return_tensors="pt").input_ids if tokenizer else torch.arange(8)[None]
    generated = model.generate(prompt, max_new_tokens=16, do_sample=False)
    print(tokenizer.decode(generated[0]) if tokenizer else generated[0].tolist())

    # And back: any expert, here the first, as a dense checkpoint in the source's own layout.
    dense = extract(out, out.with_name(f"{out.name}-expert-0"), expert=0)
    print(f"expert 0 written to {dense.out}, layout {dense.layout}")


def make_tiny(folder: Path) -> Path:
    config = GPTBigCodeConfig(
        vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_inner=256, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
