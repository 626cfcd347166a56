"""Continue a dense base on each language alone: the experts that 03_mix.py joins.

python examples/02_train_experts.py BASE OUT --data PACKED --validation DOCUMENTS      BASE, a dense checkpoint
python examples/02_train_experts.py --tiny                                             all of it made on the spot

PACKED holds a folder for each language, made by `moe-codegen data pack`; DOCUMENTS is `validation` of `data split`.
"""

import argparse
import tempfile
from pathlib import Path

from moe_codegen.training import ExpertSettings, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="dense checkpoint: a folder or a hub id")
    parser.add_argument("out", nargs="?", type=Path, help="folder to create, with a folder for each expert")
    parser.add_argument("--data", type=Path, help="folder with packed sequences of each language")
    parser.add_argument("--validation", default="", help="documents of every language to measure the loss on")
    parser.add_argument("--tiny", action="store_true", help="a tiny base and made-up code, in a temporary folder")
    arguments = parser.parse_args()
    if arguments.tiny:
        from tiny_world import make_world

        with tempfile.TemporaryDirectory() as folder:
            world = make_world(Path(folder))
            run(world.base, Path(folder) / "experts", world.packed, world.validation)
    elif arguments.base and arguments.out and arguments.data:
        run(arguments.base, arguments.out, arguments.data, arguments.validation)
    else:
        parser.error("give BASE, OUT and --data, or --tiny")


def run(base: str, out: Path, packed: Path, validation: str) -> None:
    losses = {}
    for folder in sorted(path for path in packed.iterdir() if path.is_dir()):
        settings = ExpertSettings(
            model=base,
            train=(str(folder),),
            validation=validation,
            # parts="ffn" trains no more than what the mixture keeps of an expert; parts="lora" less still.
            parts="all",
            batch_size=8,
            learning_rate=1e-3,
            log_every=1,
        )
        # Run again after a kill, it goes on from the last checkpoint, to the same losses.
        summary = train(settings, out / folder.name)
        losses[folder.name] = {name: found["value"] for name, found in summary["validation"].items()}
        print(f"{folder.name}: {summary['tokens']:,} tokens, {summary['training_flops']:.2g} FLOPs")

    # Each expert should be the best at its own language.
    for expert, by_language in losses.items():
        print(f"{expert:>12}", *(f"{language} {loss:.3f}" for language, loss in by_language.items()), sep="  ")


if __name__ == "__main__":
    main()
