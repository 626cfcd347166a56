"""Join language experts to one mixture, let a router learn, and see whether it follows the language.

python examples/03_mix.py BASE EXPERTS OUT --data PACKED --validation DOCUMENTS     EXPERTS as 02_train_experts.py left
python examples/03_mix.py --tiny                                                    all of it made on the spot

PACKED is made of all languages by `moe-codegen data pack`; DOCUMENTS is `validation` of `data split`.
"""

import argparse
import tempfile
from pathlib import Path

from moe_codegen import upcycle
from moe_codegen.training import MixSettings, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="the dense checkpoint that the experts were tuned from")
    parser.add_argument("experts", nargs="?", type=Path, help="folder with a checkpoint for each language")
    parser.add_argument("out", nargs="?", type=Path, help="folder to create")
    parser.add_argument("--data", help="packed sequences of all languages")
    parser.add_argument("--validation", default="", help="documents of every language to measure the loss on")
    parser.add_argument("--tiny", action="store_true", help="tiny models and made-up code, in a temporary folder")
    arguments = parser.parse_args()
    if arguments.tiny:
        from tiny_world import make_world

        with tempfile.TemporaryDirectory() as folder:
            world = make_world(Path(folder), with_experts=True)
            run(world.base, world.experts, Path(folder) / "out", world.mixed, world.validation)
    elif arguments.base and arguments.experts and arguments.out and arguments.data:
        experts = {path.name: str(path) for path in sorted(arguments.experts.iterdir())}
        run(arguments.base, experts, arguments.out, arguments.data, arguments.validation)
    else:
        parser.error("give BASE, EXPERTS, OUT and --data, or --tiny")


def run(base: str, experts: dict[str, str], out: Path, data: str, validation: str) -> None:
    # Branch-Train-MiX (arXiv 2403.07816): the experts' FFNs side by side, what lies outside them averaged.
    upcycle(base, out / "joined", experts=experts, shared="average")

    settings = MixSettings(
        model=str(out / "joined"),
        train=(data,),
        validation=validation,
        parts="shared",  # freezing the experts loses nothing, says the paper; "all" and "router" are the others
        router_aux_loss_coef=0.01,
        router_learning_rate=1e-2,
        batch_size=8,
        learning_rate=1e-3,
        log_every=5,
    )
    summary = train(settings, out / "mixed")
    for language, found in summary["validation"].items():
        print(f"{language}: {found['value']:.3f} nats a token")
    for layer in summary["routing"]["layers"]:
        print(
            f"layer {layer['layer']}: load {layer['evenness']:.2f} even, the expert tells "
            f"{layer['normalised_mutual_information']:.0%} of the language"
        )


if __name__ == "__main__":
    main()
