"""Answers of made-up students, from an item-response model in which practice raises ability.

A student meets items one after another. Item i has a skill and a difficulty; the chance of a right answer is
sigmoid(ability in the skill - difficulty), and every attempt raises the ability in that skill a little. So the
past answers tell something about the next one, which is what deep knowledge tracing learns.
"""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

LEARNED_PER_ATTEMPT = 0.15


def make_students(num_students: int, num_items: int, num_skills: int, num_answers: int, seed: int) -> TensorDataset:
    """Generate (items, answers) for each student.

    Returns:
        Dataset of two tensors of num_students x num_answers: item numbers from 0, and 1.0 for a right answer.
    """
    generator = torch.Generator().manual_seed(seed)
    skill_of_item = torch.arange(num_items) % num_skills
    difficulty = torch.randn(num_items, generator=generator)
    # One general ability for all skills, and each skill's own on top.
    ability = torch.randn(num_students, 1, generator=generator) * 1.5
    ability = ability + torch.randn(num_students, num_skills, generator=generator) * 0.5
    items = torch.randint(num_items, (num_students, num_answers), generator=generator)
    draws = torch.rand(num_students, num_answers, generator=generator)
    answers = torch.empty(num_students, num_answers)
    students = torch.arange(num_students)
    for attempt in range(num_answers):
        item = items[:, attempt]
        skill = skill_of_item[item]
        chance = torch.sigmoid(ability[students, skill] - difficulty[item])
        answers[:, attempt] = (draws[:, attempt] < chance).float()
        ability[students, skill] += LEARNED_PER_ATTEMPT
    return TensorDataset(items, answers)
