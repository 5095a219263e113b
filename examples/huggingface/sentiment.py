"""A made-up text classification task: does a review say more good things than bad ones?"""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

GOOD_WORDS = ("great", "lovely", "quick", "clear", "kind", "fresh")
BAD_WORDS = ("awful", "slow", "rude", "stale", "broken", "noisy")
OTHER_WORDS = ("the", "room", "was", "and", "our", "dinner", "view", "stay", "very", "staff", "city", "night")
SPECIAL_TOKENS = ("[PAD]", "[CLS]")
VOCABULARY = (*SPECIAL_TOKENS, *GOOD_WORDS, *BAD_WORDS, *OTHER_WORDS)
TOKEN_OF_WORD = {word: token for token, word in enumerate(VOCABULARY)}


class Reviews(Dataset):
    """Seeded reviews of 9 to 15 words, labelled 1 where good words are more than bad ones, else 0."""

    def __init__(self, num_reviews: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.texts: list[str] = []
        self.labels: list[int] = []
        while len(self.texts) < num_reviews:
            num_words = 9 + int(torch.randint(7, (), generator=generator))
            choice = torch.randint(len(SPECIAL_TOKENS), len(VOCABULARY), (num_words,), generator=generator)
            words = [VOCABULARY[token] for token in choice.tolist()]
            num_good = sum(word in GOOD_WORDS for word in words)
            num_bad = sum(word in BAD_WORDS for word in words)
            if num_good != num_bad:
                self.texts.append(" ".join(words))
                self.labels.append(int(num_good > num_bad))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {**tokenize(self.texts[index]), "labels": torch.tensor(self.labels[index])}


def tokenize(text: str, num_tokens: int = 16) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` of ``num_tokens`` each: [CLS], the words, then padding."""
    tokens = [TOKEN_OF_WORD["[CLS]"], *(TOKEN_OF_WORD[word] for word in text.split())][:num_tokens]
    num_padding = num_tokens - len(tokens)
    return {
        "input_ids": torch.tensor(tokens + [TOKEN_OF_WORD["[PAD]"]] * num_padding),
        "attention_mask": torch.tensor([1] * len(tokens) + [0] * num_padding),
    }
