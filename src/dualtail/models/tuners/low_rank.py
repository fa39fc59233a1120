"""LoRA and its relatives, through peft, on single projections of attention and MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import peft
from pydantic import Field
from torch import nn

from dualtail.errors import InputError, check_choice
from dualtail.models.blocks import Block
from dualtail.models.tuners.attention import open_attention, split_inputs
from dualtail.models.tuners.base import Site, Tuner
from dualtail.schema import Size

TARGETS = ("q", "k", "v", "out", "fc1", "fc2")
Targets = Annotated[Sequence[Literal["q", "k", "v", "out", "fc1", "fc2"]], Field(min_length=1)]
_ADAPTER = "default"  # peft's name for the one adapter we inject


class PeftTuner(Tuner):
    """Wraps chosen linear layers of the chosen blocks in peft's layers.

    Fused query-key-value layers, open_clip's ``nn.MultiheadAttention`` included, are first taken apart into layers that
    compute the same. Nothing is merged into the weights at any forward.

    Args:
        site: where it goes.
        config: peft's configuration; its targets are filled in here.
        targets: some of ``q``, ``k``, ``v``, ``out``, ``fc1``, ``fc2``.
    """

    def __init__(self, site: Site, config: Any, targets: Sequence[str]) -> None:
        super().__init__(site)
        self._check(targets)
        blocks = nn.ModuleDict({str(block.index): block.module for block in site.blocks})
        config.target_modules = [
            f"{block.index}.{path}" for block in site.blocks for path in self._paths(site, block, targets)
        ]
        if isinstance(config, peft.IA3Config):
            second = {
                block.mlp_layer_names(site.backbone.name)[1] for block in site.blocks if "fc2" in targets
            }
            config.feedforward_modules = [
                path for path in config.target_modules if path.rpartition(".")[2] in second
            ]
        for path in config.target_modules:
            self._keep(blocks, path)
        peft.inject_adapter_in_model(config, blocks, adapter_name=_ADAPTER)
        blocks.eval()
        self._injected = {
            f"blocks.{name.replace(f'.{_ADAPTER}', '')}": parameter
            for name, parameter in blocks.named_parameters()
            if parameter.requires_grad
        }

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return peft's parameters, which live in the blocks, as ``blocks.INDEX.LAYER.NAME``."""
        return dict(self._injected)

    def _check(self, targets: Sequence[str]) -> None:
        if not targets:
            raise InputError(f"tuner {self.name!r} has no targets", fix=f"choose from {', '.join(TARGETS)}")
        for target in targets:
            check_choice("target", target, TARGETS, where=f"tuner {self.name!r}")

    def _paths(self, site: Site, block: Block, targets: Sequence[str]) -> list[str]:
        """Return the targets' layers as paths inside the block, taking its attention apart where needed."""
        paths = []
        if not {"q", "k", "v", "out"}.isdisjoint(targets):
            attention = open_attention(self, site, block)
            if "out" in targets:
                paths.append("attn.proj")
            if chosen := [target for target in targets if target in "qkv"]:
                inputs = "attn" if split_inputs(self, attention) is attention else "attn.qkv"
                paths += [f"{inputs}.{target}_proj" for target in chosen]
        if {"fc1", "fc2"} & set(targets):
            names = dict(zip(("fc1", "fc2"), block.mlp_layer_names(site.backbone.name), strict=True))
            paths += [f"mlp.{names[target]}" for target in targets if target in names]
        return paths

    def _keep(self, blocks: nn.ModuleDict, path: str) -> None:
        """Remember the plain layer that peft is about to wrap."""
        owner_path, _, name = path.rpartition(".")
        owner, plain = blocks.get_submodule(owner_path), blocks.get_submodule(path)
        self.on_detach(lambda: setattr(owner, name, plain))


class Lora(PeftTuner):
    """LoRA: ``W x + (alpha / rank) * B A x`` with ``B`` zero at the start.

    Args:
        site: where it goes.
        rank: of ``B A``; None for LIFT's ``2 ** max(0, floor(log2(C / (2 * blocks))))``.
        alpha: numerator of the update's factor; 1 as in LIFT.
        targets: the layers it goes to.
        rank_stabilized: divide by the root of the rank instead (rsLoRA, arXiv 2312.03732).

    Source:
        Hu et al., LoRA, ICLR 2022 (arXiv 2106.09685).
    """

    name = "lora"

    def __init__(
        self,
        site: Site,
        *,
        rank: Size | None = None,
        alpha: float = 1.0,
        targets: Targets = ("q", "v"),
        rank_stabilized: bool = False,
    ) -> None:
        config = peft.LoraConfig(
            r=site.bottleneck(rank),
            lora_alpha=alpha,  # type: ignore[arg-type]
            use_rslora=rank_stabilized,
        )
        super().__init__(site, config, targets)


class LowRankTuner(PeftTuner):
    """An update of few parameters, from factors of low rank.

    Args:
        site: where it goes.
        rank: of each factor; None for LIFT's automatic width.
        alpha: as for LoRA.
        targets: the layers it goes to.

    Attributes:
        configure: peft's configuration of this form of update, from rank and alpha.
    """

    configure: ClassVar[Any]

    def __init__(
        self,
        site: Site,
        *,
        rank: Size | None = None,
        alpha: float = 1.0,
        targets: Targets = ("q", "v"),
    ) -> None:
        super().__init__(site, self.configure(site.bottleneck(rank), alpha), targets)


class Dora(LowRankTuner):
    """DoRA: LoRA on the direction of each weight row, and its length learnt apart; arguments as for LoRA.

    Source:
        Liu et al., DoRA, ICML 2024 (arXiv 2402.09353).
    """

    name = "dora"
    configure = staticmethod(lambda rank, alpha: peft.LoraConfig(r=rank, lora_alpha=alpha, use_dora=True))


class Loha(LowRankTuner):
    """LoHa: the update is the Hadamard product of two low-rank matrices.

    Source:
        Hyeon-Woo et al., FedPara, ICLR 2022 (arXiv 2108.06098).
    """

    name = "loha"
    configure = staticmethod(lambda rank, alpha: peft.LoHaConfig(r=rank, alpha=alpha))


class Lokr(LowRankTuner):
    """LoKr: the update is the Kronecker product of a small matrix and a low-rank one, whose rank it is.

    Source:
        Yeh et al., Navigating text-to-image customization, ICLR 2024 (arXiv 2309.14859).
    """

    name = "lokr"
    configure = staticmethod(lambda rank, alpha: peft.LoKrConfig(r=rank, alpha=alpha))


class Oft(PeftTuner):
    """OFT: the weights are turned by a learnt block-diagonal rotation, which starts as the identity.

    Args:
        site: where it goes.
        block_size: side of the rotation's blocks; divides the layers' input width.
        targets: the layers it goes to.

    Source:
        Qiu et al., Controlling text-to-image diffusion by orthogonal finetuning, NeurIPS 2023 (arXiv 2306.07280).
    """

    name = "oft"

    def __init__(self, site: Site, *, block_size: Size = 32, targets: Targets = ("q", "v")) -> None:
        if any(block.width % block_size for block in site.blocks):
            raise InputError(
                f"block_size {block_size} does not divide the width {site.blocks[0].width}",
                fix="choose a divisor of the width",
            )
        super().__init__(site, peft.OFTConfig(r=0, oft_block_size=block_size), targets)


class Ia3(PeftTuner):
    """IA3: learnt factors, 1 at the start, on keys, values and the MLP's hidden layer.

    Args:
        site: where it goes.
        targets: the layers it goes to; ``fc2`` has its inputs scaled, the others their outputs.

    Source:
        Liu et al., Few-shot parameter-efficient fine-tuning is better and cheaper, NeurIPS 2022 (arXiv 2205.05638).
    """

    name = "ia3"

    def __init__(self, site: Site, *, targets: Targets = ("k", "v", "fc2")) -> None:
        config = peft.IA3Config(feedforward_modules=[])
        super().__init__(site, config, targets)
