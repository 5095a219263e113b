"""Random augmentations and random generators after a resume."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import Dataset

from periflow_ray.resumable import ResumableDataLoader, SeededSamples, gather_rng_states, restore_rng_states


class Augmented(Dataset):
    """Draws from every generator that an augmentation may use."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, random.random(), float(numpy.random.rand()), float(torch.rand(()))


def make_loader(num_workers: int, **options: Any) -> ResumableDataLoader:
    return ResumableDataLoader(
        SeededSamples(Augmented(), seed=2), 2, seed=1, num_workers=num_workers, collate_fn=list, **options
    )


def test_an_augmentation_follows_from_seed_epoch_and_index_alone() -> None:
    alone = make_loader(num_workers=0)
    epochs = [list(alone), list(alone)]
    drawn = [sample[1:] for batches in epochs for batch in batches for sample in batch]
    assert len(set(drawn)) == 24

    with_workers = make_loader(num_workers=2, persistent_workers=True)
    assert [list(with_workers), list(with_workers)] == epochs

    interrupted = make_loader(num_workers=1)
    batches = iter(interrupted)
    seen = [next(batches), next(batches)]
    resumed = make_loader(num_workers=0)
    resumed.load_state_dict(interrupted.state_dict())
    assert [seen + list(resumed), list(resumed)] == epochs


def test_loading_a_sample_leaves_the_training_s_generators_as_they_were() -> None:
    before = gather_rng_states()
    assert SeededSamples(Augmented(), seed=2)[3] == SeededSamples(Augmented(), seed=2)[3]
    assert str(gather_rng_states()) == str(before)


def test_restored_generators_draw_the_same_again() -> None:
    def draw() -> tuple[float, float, float]:
        return random.gauss(0, 1), float(numpy.random.randn()), float(torch.rand(()))

    draw()
    saved = io.BytesIO()
    torch.save(gather_rng_states(), saved)
    drawn = draw(), draw()
    saved.seek(0)
    restore_rng_states(torch.load(saved, weights_only=True))
    assert (draw(), draw()) == drawn


def test_states_of_another_number_of_ranks_are_left_alone() -> None:
    before = torch.get_rng_state()
    restore_rng_states(gather_rng_states() * 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_rank_gets_its_own_generator_back(tmp_path: Any) -> None:
    torch.multiprocessing.spawn(_check_rank, (str(tmp_path / "rendezvous"),), nprocs=2)


def _check_rank(rank: int, rendezvous: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    states = gather_rng_states()
    drawn = torch.rand(2)
    restore_rng_states(states)
    assert torch.equal(torch.rand(2), drawn)
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    loader = ResumableDataLoader(range(6), collate_fn=list, shuffle=False)
    assert list(loader) == [[rank], [rank + 2], [rank + 4]]
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("use_distributed_sampler", [True, False])
def test_lightning_goes_on_in_the_middle_of_an_epoch(tmp_path: Any, use_distributed_sampler: bool) -> None:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Reader(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen: list[tuple[int, int]] = []

        def training_step(self, batch: list[int], batch_idx: int) -> torch.Tensor:
            self.seen.append((self.current_epoch, *batch))
            return self.weight * 0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(max_steps: int, ckpt_path: str | None = None) -> list[tuple[int, int]]:
        module = Reader()
        checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = pl.Trainer(
            max_epochs=3,
            max_steps=max_steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[checkpoints],
            use_distributed_sampler=use_distributed_sampler,
        )
        loader = ResumableDataLoader(range(7), 2, seed=3, drop_last=True, collate_fn=list, num_workers=1)
        trainer.fit(module, loader, ckpt_path=ckpt_path)
        return module.seen

    undisturbed = fit(max_steps=-1)
    assert len(undisturbed) == 9
    # In the middle of an epoch, at the end of one, and after the first step of another.
    for step in (2, 3, 4):
        assert fit(max_steps=-1, ckpt_path=str(tmp_path / f"step={step}.ckpt")) == undisturbed[step:]
