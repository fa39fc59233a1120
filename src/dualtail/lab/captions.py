"""Captions of a small vocabulary, and the word-level tokenizer that reads them.

The tokenizer is stored in the Hugging Face format, which open_clip reads from a model's folder by itself. The
end-of-text token has the largest number, since CLIP takes the text feature at the largest token of a caption.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualtail.lab.render import FACTOR_VALUES
from dualtail.lab.world import World

CONTEXT_LENGTH = 10
TEMPLATE = "a photo of a {}."
_PAD, _START, _UNKNOWN, _END = "<pad>", "<start>", "<unknown>", "<end>"
_COMMON = ("a", "photo", "picture", "of", "the", "with", ".")
_OPENINGS = (("a", "photo", "of", "a"), ("a", "picture", "of", "the"))


class Vocabulary:
    """Word to number, for the classes and factors of a world.

    Example:
        >>> words = Vocabulary(World(classes=2))
        >>> words.tokenize(["a photo of a disc."]).shape
        torch.Size([1, 10])
    """

    def __init__(self, world: World) -> None:
        factor_words = [w for name, count in world.factors.items() for w in FACTOR_VALUES[name][:count]]
        self.words = (_PAD, _START, _UNKNOWN, *_COMMON, *factor_words, *world.class_names, _END)
        self.number = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.words)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Return ``(n, CONTEXT_LENGTH)`` int64 tokens, as the stored tokenizer does."""
        unknown = self.number[_UNKNOWN]
        rows = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            tokens = [self.number.get(word, unknown) for word in text.replace(".", " .").split()]
            tokens = [self.number[_START], *tokens[: CONTEXT_LENGTH - 2], self.number[_END]]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

    def captions(
        self, world: World, labels: np.ndarray, factors: np.ndarray, rng: np.random.Generator
    ) -> Tensor:
        """Return the tokens ``(N, CONTEXT_LENGTH)`` of a caption for each image: its class and two of its factors.

        Args:
            world: names classes and factor values.
            labels: ``(N,)`` class numbers.
            factors: ``(N, F)`` what the images show.
            rng: draws the opening and the two factors.
        """
        values = [[self.number[w] for w in FACTOR_VALUES[name][:n]] for name, n in world.factors.items()]
        table = np.zeros((len(values), max(map(len, values))), dtype=np.int64)
        for row, numbers in zip(table, values, strict=True):
            row[: len(numbers)] = numbers
        openings = np.array([[self.number[word] for word in opening] for opening in _OPENINGS])
        names = np.array([self.number[name] for name in world.class_names])
        count, num_factors = factors.shape
        told = rng.permuted(np.tile(np.arange(num_factors), (count, 1)), axis=1)[:, :2]
        tokens = np.full((count, CONTEXT_LENGTH), self.number[_PAD], dtype=np.int64)
        tokens[:, 0] = self.number[_START]
        tokens[:, 1:5] = openings[rng.integers(0, len(openings), count)]
        tokens[:, 5] = names[labels]
        rows = np.arange(count)
        for index in range(told.shape[1]):
            tokens[:, 6 + index] = table[told[:, index], factors[rows, told[:, index]]]
        tokens[:, 6 + told.shape[1]] = self.number[_END]
        return torch.from_numpy(tokens)

    def class_prompts(self, world: World) -> Tensor:
        """Return the tokens ``(C, CONTEXT_LENGTH)`` of ``TEMPLATE`` for every class."""
        return self.tokenize([TEMPLATE.format(name) for name in world.class_names])

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": self.number[token], "content": token, "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False, "special": True}
                for token in (_PAD, _START, _UNKNOWN, _END)
            ],
            "normalizer": {"type": "Replace", "pattern": {"String": "."}, "content": " . "},
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": _START, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": _END, "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {
                    token: {"id": token, "ids": [self.number[token]], "tokens": [token]} for token in (_START, _END)
                },
            },
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": self.number, "unk_token": _UNKNOWN},
        }  # fmt: skip
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT_LENGTH,
            "pad_token": _PAD,
            "unk_token": _UNKNOWN,
            "bos_token": _START,
            "eos_token": _END,
        }
        for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
