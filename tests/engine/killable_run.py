"""Fine-tune the stand-in with checkpoints and say each step; a test kills this program in the middle."""

from __future__ import annotations

import sys
import time

import torch
from engine_standins import SyntheticLoader, TinyClassifier, state_of
from safetensors.torch import save_file

from dualtail.engine.finetune import finetune
from dualtail.engine.settings import FinetuneSettings
from dualtail.errors import Interrupted


def main(checkpoints: str, result: str, pause: float) -> None:
    torch.set_num_threads(1)
    classifier = TinyClassifier(norm=True)
    settings = FinetuneSettings(
        epochs=4,
        learning_rate=0.1,
        accumulation=2,
        ema_decay=0.9,
        mixup=0.4,
        cutmix=1.0,
        keep="best",
        checkpoint_steps=1,
        precision="fp32",
    )

    def tell(told: object) -> None:
        print("step", told.step, flush=True)  # type: ignore[attr-defined]
        time.sleep(pause)

    try:
        finetune(
            classifier,
            SyntheticLoader(),
            torch.nn.CrossEntropyLoss(),
            settings,
            checkpoint_dir=checkpoints,
            progress=tell,
            evaluate=lambda model: {"macro": float(model.head.weight.sum())},
            device="cpu",
        )
    except Interrupted as stopped:
        print(stopped, flush=True)
        sys.exit(3)
    save_file(state_of(classifier), result)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
