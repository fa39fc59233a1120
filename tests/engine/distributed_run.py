"""Fine-tune the stand-in and ask it for logits, in as many processes as torchrun starts; write what came out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from engine_standins import EvalLoader, SyntheticLoader, TinyClassifier, state_of
from safetensors.torch import save_file

from dualtail.engine.finetune import finetune
from dualtail.engine.inference import infer, member_evaluation
from dualtail.engine.settings import FinetuneSettings
from dualtail.process_group import ProcessGroup


def main(out: Path) -> None:
    torch.set_num_threads(1)
    group = ProcessGroup.launched()
    rank = group.rank
    classifier = TinyClassifier(dropout=0.0)
    # 51 images in batches of 8, two a step: the last batch has 3 images, the last step one batch.
    settings = FinetuneSettings(
        epochs=3,
        learning_rate=0.1,
        accumulation=2,
        ema_decay=0.8,
        gradient_clip=0.5,
        precision="fp32",
        keep="best",
    )
    result = finetune(
        classifier,
        SyntheticLoader(count=51, group=group),
        torch.nn.CrossEntropyLoss(),
        settings,
        checkpoint_dir=out / "resume",
        events_dir=out / "events",
        evaluate=member_evaluation(EvalLoader(group=group), crop="plain", device="cpu", precision="fp32"),
        device="cpu",
    )
    outputs = infer(
        {"m": classifier},
        EvalLoader(group=group),
        crops={"m": "flipped"},
        features="float16",
        device="cpu",
        precision="fp32",
    )["m"]
    save_file(
        {
            **state_of(classifier),
            "logits": outputs.logits,
            "features": outputs.features,
            "labels": outputs.labels,
            "index": outputs.index,
        },
        out / f"rank{rank}.safetensors",
    )
    by_itself = TinyClassifier(rank, dropout=0.0)
    finetune(
        by_itself,
        SyntheticLoader(seed=rank),
        torch.nn.CrossEntropyLoss(),
        FinetuneSettings(epochs=2, precision="fp32"),
        events_dir=out / f"events{rank}",
        checkpoint_dir=out / f"resume{rank}",
        evaluate=member_evaluation(
            EvalLoader(), crop="plain", device="cpu", precision="fp32", group=ProcessGroup()
        ),
        device="cpu",
        group=ProcessGroup(),
    )
    save_file(state_of(by_itself), out / f"alone{rank}.safetensors")
    (out / f"rank{rank}.json").write_text(json.dumps(result.to_dict()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
